//! The dashboard: one page and what it is made of, all of it built in. Nothing on it comes from anywhere else.
//!
//! What is dynamic the page asks for itself, at `/api/events` and `/api/history`; what these say it takes as text.

use headers::{ETag, HeaderMapExt as _, IfNoneMatch};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::protocol::body::Body;

/// Scripts, styles and pictures of its own, and no others; in no other page's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

/// A file of the page's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    path: &'static str,
    kind: &'static str,
    content: &'static str,
}

const fn file(path: &'static str, kind: &'static str, content: &'static str) -> File {
    File { path, kind, content }
}

/// All of them, the page itself first.
const FILES: [File; 20] = [
    file("/", HTML, include_str!("index.html")),
    file("/dashboard/mark.svg", SVG, include_str!("mark.svg")),
    file("/dashboard/colours.css", CSS, include_str!("colours.css")),
    file("/dashboard/page.css", CSS, include_str!("page.css")),
    file("/dashboard/panels.css", CSS, include_str!("panels.css")),
    file("/dashboard/figures.css", CSS, include_str!("figures.css")),
    file("/dashboard/plots.css", CSS, include_str!("plots.css")),
    file("/dashboard/rows.css", CSS, include_str!("rows.css")),
    file("/dashboard/dashboard.js", JS, include_str!("dashboard.js")),
    file("/dashboard/stream.js", JS, include_str!("stream.js")),
    file("/dashboard/figures.js", JS, include_str!("figures.js")),
    file("/dashboard/history.js", JS, include_str!("history.js")),
    file("/dashboard/plot.js", JS, include_str!("plot.js")),
    file("/dashboard/jobs.js", JS, include_str!("jobs.js")),
    file("/dashboard/keys.js", JS, include_str!("keys.js")),
    file("/dashboard/page.js", JS, include_str!("page.js")),
    file("/dashboard/words.js", JS, include_str!("words.js")),
    // As they come from npm: uplot 1.6.32.
    file("/dashboard/uplot/uPlot.iife.min.js", JS, include_str!("uplot/uPlot.iife.min.js")),
    file("/dashboard/uplot/uPlot.min.css", CSS, include_str!("uplot/uPlot.min.css")),
    // It has to go wherever they go.
    file("/dashboard/uplot/LICENSE", TEXT, include_str!("uplot/LICENSE")),
];

impl File {
    /// The file at this path.
    pub(super) fn at(path: &str) -> Option<Self> {
        FILES.iter().find(|file| file.path == path).copied()
    }

    /// The answer to who asks for it, short if he has it (RFC 9110 §13.1.2).
    pub(super) fn answer(self, request: &HeaderMap) -> Response<Body> {
        let etag = self.etag();
        let is_had = request.typed_get::<IfNoneMatch>().is_some_and(|had| !had.precondition_passes(&etag));
        let mut response = match is_had {
            true => Response::new(Body::empty()),
            false => Response::new(Body::full(self.content)),
        };
        if is_had {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.typed_insert(etag);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }

    /// Another version's file is another one.
    fn etag(self) -> ETag {
        let hash = blake3::hash(self.content.as_bytes()).to_hex();
        format!("\"{}\"", &hash[..32]).parse().expect("hex digits in quotes are an ETag")
    }
}
