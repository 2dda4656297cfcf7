//! Key of a kept answer: all bytes of a request on which the answer depends.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT,
};
use http::{HeaderName, Method, Request, Version};
use http_body::Body as HttpBody;

use crate::gateway::response::X_REQUEST_ID;
use crate::protocol::peer::Peer;
use crate::protocol::request::RequestCtx;

/// Most fields of a request: the least `server.max_headers`.
const MAX_FIELDS: usize = 16;

/// Writes everything of a request that decides about its answer. Returns whether there is nothing else.
pub(super) fn write_key<B: HttpBody>(request: &Request<B>, ctx: &RequestCtx, key: &mut Vec<u8>) -> bool {
    let (uri, version) = (request.uri(), request.version());
    let version_byte = match version {
        Version::HTTP_10 => 0,
        Version::HTTP_11 => 1,
        Version::HTTP_2 => 2,
        _ => return false,
    };
    let is_absolute_form = version < Version::HTTP_2 && uri.authority().is_some();
    if request.method() != Method::GET || !request.body().is_end_stream() || is_absolute_form {
        return false;
    }
    // More could be over `server.max_headers`, also with fields that are not read.
    if request.headers().len() > MAX_FIELDS {
        return false;
    }
    key.clear();
    key.extend([version_byte, ctx.is_tls.into(), (ctx.forwarded.peer() == Peer::Unix).into()]);
    put_part(key, 0, uri.authority().map_or("", |authority| authority.as_str()).as_bytes());
    put_part(key, 1, uri.path().as_bytes());
    // A target with an empty query differs from one without.
    put_part(key, 2 + u8::from(uri.query().is_some()), uri.query().unwrap_or_default().as_bytes());
    for (name, value) in request.headers() {
        let tag = if *name == HOST {
            4
        } else if *name == AUTHORIZATION {
            5
        } else if *name == ACCEPT {
            6
        } else if IGNORED.contains(name) || *name == X_REQUEST_ID {
            continue;
        } else {
            return false;
        };
        put_part(key, tag, value.as_bytes());
    }
    ctx.forwarded.is_direct()
}

/// Fields that the ordinary way does not read.
const IGNORED: [HeaderName; 5] = [USER_AGENT, ACCEPT_ENCODING, CONNECTION, ACCEPT_LANGUAGE, CONTENT_TYPE];

/// Appends a part with its length, so that two lists of parts never have the same bytes.
fn put_part(key: &mut Vec<u8>, tag: u8, part: &[u8]) {
    let [a, b, c, d] = (part.len() as u32).to_le_bytes();
    key.extend_from_slice(&[tag, a, b, c, d]);
    key.extend_from_slice(part);
}
