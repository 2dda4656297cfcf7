//! The way to the collector: OTLP, protobuf over HTTP.
//!
//! All of it happens on the SDK's own thread, on a runtime of that thread's: no request ever waits for it. The
//! library takes headers for the collector, such as its token, from `OTEL_EXPORTER_OTLP_HEADERS`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::CONNECTION;
use http::{HeaderValue, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::trace::{Link, SpanKind, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingResult, SdkTracerProvider, ShouldSample};
use tokio::runtime::Runtime;

use super::processor::{BoundedProcessor, SpanCounts};

/// How long the collector may take for one try, and for all tries of a batch.
const LIMIT: Duration = Duration::from_secs(5);
/// The longest answer of a collector's that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Why there is no way to the collector.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The library refuses the endpoint.
    #[error("telemetry.otlp_endpoint cannot be used")]
    Exporter(#[from] ExporterBuildError),
    /// The TLS library has no common ground with its own crypto provider, or the thread has no runtime.
    #[error("the way to telemetry.otlp_endpoint cannot be set up")]
    Setup(#[from] io::Error),
}

/// What begins spans and tells this collector of them.
pub(super) fn provider(
    endpoint: &Uri,
    percent: u8,
    tally: &Arc<SpanCounts>,
) -> Result<SdkTracerProvider, TraceError> {
    let otlp = SpanExporter::builder()
        .with_http()
        .with_http_client(OtlpHttpClient::new()?)
        .with_endpoint(format!("{}/v1/traces", endpoint.to_string().trim_end_matches('/')))
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(LIMIT)
        .with_retry_policy(RetryPolicy::recommended().with_max_retries(1))
        .build()?;
    let resource = Resource::builder()
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let requests = Sampler::TraceIdRatioBased(f64::from(percent) / 100.0);
    Ok(SdkTracerProvider::builder()
        .with_span_processor(BoundedProcessor::new(otlp, tally))
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(RootSampler { requests })))
        .build())
}

/// Which traces that begin here are recorded: so many of the requests', and each poll's, as polls that no recorded
/// request leans on have no span at all.
#[derive(Clone, Debug)]
struct RootSampler {
    requests: Sampler,
}

impl ShouldSample for RootSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let sampler = if *kind == SpanKind::Client { &Sampler::AlwaysOn } else { &self.requests };
        sampler.should_sample(parent, trace, name, kind, attributes, links)
    }
}

/// Posts batches, a connection each.
#[derive(Debug)]
struct OtlpHttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Runtime,
}

impl OtlpHttpClient {
    fn new() -> io::Result<Self> {
        let (new, provider) = (HttpsConnectorBuilder::new, rustls::crypto::ring::default_provider);
        let tls = match new().with_provider_and_native_roots(provider()) {
            Ok(tls) => tls,
            // As the upstream's client does, which tells of it.
            Err(_) => new().with_provider_and_webpki_roots(provider()).map_err(io::Error::other)?,
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(tls.https_or_http().enable_http1().build());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { client, runtime })
    }
}

#[async_trait]
impl HttpClient for OtlpHttpClient {
    /// Blocks, which the thread that calls it is there for.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = request.map(Full::new);
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        let posting = async {
            let (head, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        self.runtime.block_on(async { tokio::time::timeout(LIMIT, posting).await })?
    }
}
