//! The dashboard: the files of one page, built into the binary. The page loads nothing from other hosts.
//!
//! Its scripts read `/api/events` and `/api/history`, and insert strings from there as text only.

use headers::{ETag, HeaderMapExt as _, IfNoneMatch};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::protocol::body::Body;

/// Allows scripts, styles and images of this origin only, and no frame of another page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DashboardFile {
    path: &'static str,
    content_type: &'static str,
    content: &'static str,
}

const fn file(path: &'static str, content_type: &'static str, content: &'static str) -> DashboardFile {
    DashboardFile { path, content_type, content }
}

const FILES: [DashboardFile; 29] = [
    file("/", HTML, include_str!("index.html")),
    file("/dashboard/mark.svg", SVG, include_str!("mark.svg")),
    file("/dashboard/colours.css", CSS, include_str!("colours.css")),
    file("/dashboard/dark.css", CSS, include_str!("dark.css")),
    file("/dashboard/flow.css", CSS, include_str!("flow.css")),
    file("/dashboard/layout.css", CSS, include_str!("layout.css")),
    file("/dashboard/page.css", CSS, include_str!("page.css")),
    file("/dashboard/panels.css", CSS, include_str!("panels.css")),
    file("/dashboard/summary.css", CSS, include_str!("summary.css")),
    file("/dashboard/plots.css", CSS, include_str!("plots.css")),
    file("/dashboard/rows.css", CSS, include_str!("rows.css")),
    file("/dashboard/dashboard.js", JS, include_str!("dashboard.js")),
    file("/dashboard/stream.js", JS, include_str!("stream.js")),
    file("/dashboard/summary.js", JS, include_str!("summary.js")),
    file("/dashboard/history.js", JS, include_str!("history.js")),
    file("/dashboard/plot.js", JS, include_str!("plot.js")),
    file("/dashboard/causes.js", JS, include_str!("causes.js")),
    file("/dashboard/jobs.js", JS, include_str!("jobs.js")),
    file("/dashboard/keys.js", JS, include_str!("keys.js")),
    file("/dashboard/filter.js", JS, include_str!("filter.js")),
    file("/dashboard/flow.js", JS, include_str!("flow.js")),
    file("/dashboard/members.js", JS, include_str!("members.js")),
    file("/dashboard/replicas.js", JS, include_str!("replicas.js")),
    file("/dashboard/theme.js", JS, include_str!("theme.js")),
    file("/dashboard/dom.js", JS, include_str!("dom.js")),
    file("/dashboard/format.js", JS, include_str!("format.js")),
    // Unchanged from npm: uplot 1.6.32.
    file("/dashboard/uplot/uPlot.iife.min.js", JS, include_str!("uplot/uPlot.iife.min.js")),
    file("/dashboard/uplot/uPlot.min.css", CSS, include_str!("uplot/uPlot.min.css")),
    // The license requires its text beside the files.
    file("/dashboard/uplot/LICENSE", TEXT, include_str!("uplot/LICENSE")),
];

impl DashboardFile {
    pub(super) fn at(path: &str) -> Option<Self> {
        FILES.iter().find(|file| file.path == path).copied()
    }

    /// Returns the file, or 304 if the client has it (RFC 9110 section 13.1.2).
    pub(super) fn respond(self, request: &HeaderMap) -> Response<Body> {
        let etag = self.etag();
        let is_current =
            request.typed_get::<IfNoneMatch>().is_some_and(|etags| !etags.precondition_passes(&etag));
        let mut response = match is_current {
            true => Response::new(Body::empty()),
            false => Response::new(Body::full(self.content)),
        };
        if is_current {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.typed_insert(etag);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }

    fn etag(self) -> ETag {
        let hash = blake3::hash(self.content.as_bytes()).to_hex();
        format!("\"{}\"", &hash[..32]).parse().expect("hex digits in quotes are an ETag")
    }
}
