//! States of jobs and whole responses as bytes, before they are sealed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{WireReader, put_field};
use crate::core::job::{JobId, ResponseHead, UpstreamResponse};
use crate::core::job_body::ListShape;
use crate::core::route::Ladder;
use crate::core::siblings::SharedState;

/// Encodes a state without its id and age. A body over `max_body` is left out.
pub(in crate::cluster) fn encode_state(state: &SharedState, max_body: usize) -> Vec<u8> {
    let body = state.body.as_ref().filter(|body| body.len() <= max_body);
    let mut out = Vec::with_capacity(64 + body.map_or(0, |body| body.len()));
    let rung = state.rung.map_or(0, |rung| u16::from(rung.position()) + 1);
    out.extend_from_slice(&rung.to_be_bytes());
    out.push(state.is_final.into());
    encode_head(&mut out, &state.head);
    out.push(body.is_some().into());
    put_field(&mut out, body.map_or(&[], |body| body));
    encode_shape(&mut out, state.shape.as_deref());
    out
}

/// Decodes a state of this job.
pub(in crate::cluster) fn decode_state(
    bytes: Vec<u8>,
    id: &JobId,
    age: Duration,
    ladder: &Ladder,
) -> Option<SharedState> {
    let mut reader = WireReader::new(bytes);
    let rung = match reader.u16()? {
        0 => None,
        above => Some(ladder.at(u8::try_from(above - 1).ok()?)?),
    };
    let is_final = reader.u8()? == 1;
    let head = Arc::new(decode_head(&mut reader)?);
    let has_body = reader.u8()? == 1;
    let body = reader.field()?;
    let shape = decode_shape(&mut reader)?.map(Arc::new);
    Some(SharedState { id: id.clone(), rung, body: has_body.then_some(body), head, age, is_final, shape })
}

fn encode_shape(out: &mut Vec<u8>, shape: Option<&ListShape>) {
    match shape {
        None => out.push(0),
        Some(ListShape::Array) => out.push(1),
        Some(ListShape::Map) => out.push(2),
        Some(ListShape::Wrapped(name)) => {
            out.push(3);
            put_field(out, name.as_bytes());
        }
    }
}

fn decode_shape(reader: &mut WireReader) -> Option<Option<ListShape>> {
    Some(match reader.u8()? {
        0 => None,
        1 => Some(ListShape::Array),
        2 => Some(ListShape::Map),
        3 => Some(ListShape::Wrapped(std::str::from_utf8(&reader.field()?).ok()?.to_owned())),
        _ => return None,
    })
}

pub(in crate::cluster) fn encode_response(response: &UpstreamResponse) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + response.body.len());
    out.extend_from_slice(&response.status.to_be_bytes());
    encode_head(&mut out, &response.head);
    put_field(&mut out, &response.body);
    out
}

pub(in crate::cluster) fn decode_response(bytes: Vec<u8>) -> Option<Arc<UpstreamResponse>> {
    let mut reader = WireReader::new(bytes);
    let status = reader.u16()?;
    let head = Arc::new(decode_head(&mut reader)?);
    Some(Arc::new(UpstreamResponse { status, head, body: reader.field()? }))
}

/// Encodes a head without the headers of its one response: no other client gets them (P8).
fn encode_head(out: &mut Vec<u8>, head: &ResponseHead) {
    out.extend_from_slice(&head.status.to_be_bytes());
    out.push(head.is_complete.into());
    let fields: Vec<&(Box<str>, Bytes)> = head.shared.iter().take(usize::from(u16::MAX)).collect();
    out.extend_from_slice(&u16::try_from(fields.len()).unwrap_or_default().to_be_bytes());
    for (name, value) in fields {
        put_field(out, name.as_bytes());
        put_field(out, value);
    }
}

fn decode_head(reader: &mut WireReader) -> Option<ResponseHead> {
    let status = reader.u16()?;
    let is_complete = reader.u8()? == 1;
    let mut shared = Vec::new();
    for _ in 0..reader.u16()? {
        let name = reader.field()?;
        shared.push((std::str::from_utf8(&name).ok()?.into(), reader.field()?));
    }
    Some(ResponseHead { status, is_complete, shared, per_response: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::route::Route;

    fn state() -> SharedState {
        let ladder = Route::suno().ladder;
        SharedState {
            id: JobId::new("a").unwrap(),
            rung: Some(ladder.highest_askable()),
            body: Some(Bytes::from_static(b"{}")),
            head: Arc::new(ResponseHead {
                shared: vec![("etag".into(), Bytes::from_static(b"\"x\""))],
                ..ResponseHead::default()
            }),
            age: Duration::from_millis(7),
            is_final: true,
            shape: Some(Arc::new(ListShape::Wrapped("clips".to_owned()))),
        }
    }

    #[test]
    fn each_list_shape_is_read_as_it_was_written() {
        let ladder = Route::suno().ladder;
        for shape in [None, Some(ListShape::Array), Some(ListShape::Map)] {
            let state = SharedState { shape: shape.map(Arc::new), ..state() };
            let read = decode_state(encode_state(&state, 100), &state.id, state.age, &ladder);
            assert_eq!(read, Some(state));
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written_and_later_fields_are_ignored() {
        let (state, ladder) = (state(), Route::suno().ladder);
        let mut bytes = encode_state(&state, 100);
        let decode = |bytes: &[u8]| decode_state(bytes.to_vec(), &state.id, state.age, &ladder);
        assert_eq!(decode(&bytes), Some(state.clone()));
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "{len} bytes");
        }
        bytes.extend_from_slice(b"a later field");
        assert_eq!(decode(&bytes), Some(state.clone()));
        let without = decode(&encode_state(&state, 1)).unwrap();
        assert_eq!(without, SharedState { body: None, ..state });
    }

    #[test]
    fn a_response_is_read_as_it_was_written_without_the_headers_of_one_client() {
        let head = ResponseHead {
            status: 404,
            is_complete: false,
            shared: vec![("content-type".into(), Bytes::from_static(b"text/plain"))],
            per_response: vec![("set-cookie".into(), Bytes::from_static(b"a=b"))],
        };
        let response = |head| UpstreamResponse { status: 404, head: Arc::new(head), body: "no".into() };
        let read = decode_response(encode_response(&response(head.clone()))).unwrap();
        assert_eq!(*read, response(ResponseHead { per_response: Vec::new(), ..head }));
    }

    #[test]
    fn random_bytes_never_panic() {
        let ladder = Route::suno().ladder;
        let id = JobId::new("a").unwrap();
        let good = encode_state(&state(), 100);
        let mut rng = fastrand::Rng::with_seed(1);
        for n in 0..20_000 {
            let mut bytes: Vec<u8> = match n % 2 {
                0 => (0..rng.usize(..80)).map(|_| rng.u8(..)).collect(),
                _ => good.clone(),
            };
            if !bytes.is_empty() {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            let _ = decode_state(bytes.clone(), &id, Duration::ZERO, &ladder);
            let _ = decode_response(bytes);
        }
    }
}
