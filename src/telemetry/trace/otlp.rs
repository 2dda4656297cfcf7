//! Exporter of spans: OTLP, protobuf over HTTP.
//!
//! It runs on the thread of the SDK, with a runtime of its own, so no request waits for the collector. The library
//! reads headers for the collector, such as a token, from `OTEL_EXPORTER_OTLP_HEADERS`.

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

/// Timeout of one export attempt, and of all attempts of a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest response of the collector that is read, in bytes.
const MAX_RESPONSE: usize = 64 << 10;

/// Errors of the exporter's set-up.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("telemetry.otlp_endpoint is not a usable endpoint")]
    Exporter(#[from] ExporterBuildError),
    /// TLS, or the runtime of the exporter.
    #[error("cannot set up the client for telemetry.otlp_endpoint")]
    Setup(#[from] io::Error),
}

/// Creates the provider of spans that are exported to the endpoint.
pub(super) fn provider(
    endpoint: &Uri,
    percent: u8,
    counts: &Arc<SpanCounts>,
) -> Result<SdkTracerProvider, TraceError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(OtlpHttpClient::new()?)
        .with_endpoint(format!("{}/v1/traces", endpoint.to_string().trim_end_matches('/')))
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(EXPORT_TIMEOUT)
        .with_retry_policy(RetryPolicy::recommended().with_max_retries(1))
        .build()?;
    let resource = Resource::builder()
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let request_sampler = Sampler::TraceIdRatioBased(f64::from(percent) / 100.0);
    Ok(SdkTracerProvider::builder()
        .with_span_processor(BoundedProcessor::new(exporter, counts))
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(RootSampler { request_sampler })))
        .build())
}

/// Sampler of the traces that the gateway starts: a percentage of the requests, and all polls. A poll has a span only
/// if a recorded request opened it.
#[derive(Clone, Debug)]
struct RootSampler {
    request_sampler: Sampler,
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
        let sampler = if *kind == SpanKind::Client { &Sampler::AlwaysOn } else { &self.request_sampler };
        sampler.should_sample(parent, trace, name, kind, attributes, links)
    }
}

/// HTTP client of the exporter, with a new connection for each batch.
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
            // As the client of the upstream, which logs a warning about it.
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
    /// Blocks the calling thread, which only exports.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = request.map(Full::new);
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        let export = async {
            let (head, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, MAX_RESPONSE).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        self.runtime.block_on(async { tokio::time::timeout(EXPORT_TIMEOUT, export).await })?
    }
}
