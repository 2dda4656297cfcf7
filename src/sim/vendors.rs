//! Vendors whose APIs never hold a request: their endpoints, status words and codes, as one table.
//!
//! The table follows the vendors' documents and SDKs. A new vendor is a row here and a function in `vendor_body`.

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

/// A simulated vendor whose API answers every read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// `/v1/predictions`
    Replicate,
    /// `/v1/responses` with `background: true`
    OpenAi,
    /// `/fal-ai/{app}`, with 202 until the end
    Fal,
    /// `/v2/{endpoint}`
    RunPod,
}

/// One row of the table.
pub(super) struct VendorApi {
    pub(super) vendor: Vendor,
    /// Scheme before the key in `Authorization`, with its space.
    pub(super) scheme: &'static str,
    pub(super) words: VendorWords,
    /// Status code of a read before the end.
    pub(super) pending_code: StatusCode,
    endpoints: &'static [Endpoint],
}

/// The status words of a job.
pub(super) struct VendorWords {
    /// The states on the way, in order.
    pub(super) pending: [&'static str; 2],
    pub(super) succeeded: &'static str,
    pub(super) failed: &'static str,
    pub(super) canceled: &'static str,
}

/// One path template of a vendor. `{id}` is the job, other names are any segment.
struct Endpoint {
    method: Method,
    path: &'static str,
    action: VendorAction,
    /// Status code of the response. Reads before the end have [`VendorApi::pending_code`].
    code: StatusCode,
}

/// The operation of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VendorAction {
    Create,
    /// Returns the state.
    Read,
    /// Returns the output alone; 400 before the end.
    ReadOutput,
    Cancel,
    /// Starts the job again.
    Retry,
    /// Removes the job.
    Remove,
}

/// An operation on a job of a vendor.
pub(super) struct VendorRequest {
    pub(super) api: &'static VendorApi,
    pub(super) action: VendorAction,
    pub(super) code: StatusCode,
    /// The decoded id alone; empty for [`VendorAction::Create`].
    pub(super) ids: Vec<String>,
}

impl Vendor {
    pub(super) fn api(self) -> &'static VendorApi {
        VENDORS.iter().find(|api| api.vendor == self).expect("the table has every vendor")
    }
}

impl VendorApi {
    /// Returns the id of a new job, made of a random UUID.
    pub(super) fn new_id(&self, uuid: &str) -> String {
        match self.vendor {
            Vendor::Replicate => uuid.replace('-', "").split_off(6),
            Vendor::OpenAi => format!("resp_{}", uuid.replace('-', "")),
            Vendor::Fal => uuid.to_owned(),
            Vendor::RunPod => format!("{uuid}-u1"),
        }
    }
}

/// Returns the operation that a method and a path name.
pub(super) fn parse_vendor_request(method: &Method, path: &str) -> Option<VendorRequest> {
    VENDORS.iter().find_map(|api| {
        api.endpoints.iter().filter(|endpoint| endpoint.method == method).find_map(|endpoint| {
            let ids = match_template(endpoint.path, path)?;
            Some(VendorRequest { api, action: endpoint.action, code: endpoint.code, ids })
        })
    })
}

/// Returns the ids in a path that matches the template.
fn match_template(template: &str, path: &str) -> Option<Vec<String>> {
    let (mut template, mut path) = (template.split('/'), path.split('/'));
    let mut ids = Vec::new();
    loop {
        match (template.next(), path.next()) {
            (None, None) => return Some(ids),
            (Some("{id}"), Some(id)) if !id.is_empty() => {
                ids.push(percent_decode_str(id).decode_utf8_lossy().into_owned());
            }
            (Some(name), Some(segment)) if name.starts_with('{') && !segment.is_empty() => {}
            (Some(name), Some(segment)) if name == segment => {}
            _ => return None,
        }
    }
}

const fn endpoint(method: Method, path: &'static str, action: VendorAction, code: StatusCode) -> Endpoint {
    Endpoint { method, path, action, code }
}

static VENDORS: [VendorApi; 4] = [
    VendorApi {
        vendor: Vendor::Replicate,
        scheme: "Bearer ",
        words: VendorWords {
            pending: ["starting", "processing"],
            succeeded: "succeeded",
            failed: "failed",
            canceled: "canceled",
        },
        pending_code: StatusCode::OK,
        endpoints: &[
            endpoint(Method::POST, "/v1/predictions", VendorAction::Create, StatusCode::CREATED),
            endpoint(
                Method::POST,
                "/v1/models/{owner}/{name}/predictions",
                VendorAction::Create,
                StatusCode::CREATED,
            ),
            endpoint(Method::GET, "/v1/predictions/{id}", VendorAction::Read, StatusCode::OK),
            endpoint(Method::POST, "/v1/predictions/{id}/cancel", VendorAction::Cancel, StatusCode::OK),
            endpoint(Method::DELETE, "/v1/predictions/{id}", VendorAction::Remove, StatusCode::NO_CONTENT),
        ],
    },
    VendorApi {
        vendor: Vendor::OpenAi,
        scheme: "Bearer ",
        words: VendorWords {
            pending: ["queued", "in_progress"],
            succeeded: "completed",
            failed: "failed",
            canceled: "cancelled",
        },
        pending_code: StatusCode::OK,
        endpoints: &[
            endpoint(Method::POST, "/v1/responses", VendorAction::Create, StatusCode::OK),
            endpoint(Method::GET, "/v1/responses/{id}", VendorAction::Read, StatusCode::OK),
            endpoint(Method::POST, "/v1/responses/{id}/cancel", VendorAction::Cancel, StatusCode::OK),
            endpoint(Method::DELETE, "/v1/responses/{id}", VendorAction::Remove, StatusCode::NO_CONTENT),
        ],
    },
    VendorApi {
        vendor: Vendor::Fal,
        scheme: "Key ",
        words: VendorWords {
            pending: ["IN_QUEUE", "IN_PROGRESS"],
            // The vendor has no word of its own for failures: the body has an `error`.
            succeeded: "COMPLETED",
            failed: "COMPLETED",
            canceled: "COMPLETED",
        },
        pending_code: StatusCode::ACCEPTED,
        endpoints: &[
            endpoint(Method::POST, "/fal-ai/{app}", VendorAction::Create, StatusCode::OK),
            endpoint(Method::GET, "/fal-ai/{app}/requests/{id}/status", VendorAction::Read, StatusCode::OK),
            endpoint(Method::GET, "/fal-ai/{app}/requests/{id}", VendorAction::ReadOutput, StatusCode::OK),
            endpoint(
                Method::PUT,
                "/fal-ai/{app}/requests/{id}/cancel",
                VendorAction::Cancel,
                StatusCode::ACCEPTED,
            ),
        ],
    },
    VendorApi {
        vendor: Vendor::RunPod,
        scheme: "Bearer ",
        words: VendorWords {
            pending: ["IN_QUEUE", "IN_PROGRESS"],
            succeeded: "COMPLETED",
            failed: "FAILED",
            canceled: "CANCELLED",
        },
        pending_code: StatusCode::OK,
        endpoints: &[
            endpoint(Method::POST, "/v2/{endpoint}/run", VendorAction::Create, StatusCode::OK),
            endpoint(Method::GET, "/v2/{endpoint}/status/{id}", VendorAction::Read, StatusCode::OK),
            endpoint(Method::POST, "/v2/{endpoint}/cancel/{id}", VendorAction::Cancel, StatusCode::OK),
            endpoint(Method::POST, "/v2/{endpoint}/retry/{id}", VendorAction::Retry, StatusCode::OK),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_matches_whole_segments_and_decodes_the_id() {
        let cases = [
            ("/v1/predictions/{id}", "/v1/predictions/a%20b", Some(vec!["a b"])),
            ("/v1/predictions/{id}", "/v1/predictions/", None),
            ("/v1/predictions/{id}", "/v1/predictions/a/", None),
            ("/v1/predictions", "/v1/predictions", Some(vec![])),
            ("/v2/{endpoint}/status/{id}", "/v2/e/status/a", Some(vec!["a"])),
            ("/v2/{endpoint}/status/{id}", "/v2//status/a", None),
        ];
        for (template, path, ids) in cases {
            let ids = ids.map(|ids| ids.into_iter().map(str::to_owned).collect());
            assert_eq!(match_template(template, path), ids, "{template} {path}");
        }
    }

    #[test]
    fn no_request_matches_endpoints_of_two_vendors() {
        for api in &VENDORS {
            for endpoint in api.endpoints {
                let path = endpoint.path.replace(['{', '}'], "x");
                let request = parse_vendor_request(&endpoint.method, &path).unwrap();
                assert_eq!((request.api.vendor, request.action), (api.vendor, endpoint.action), "{path}");
            }
        }
    }
}
