//! Stub.
#![allow(dead_code, unused_variables, clippy::needless_pass_by_value)]
use std::time::Duration;

use tokio::sync::mpsc;

use crate::core::coalescer::PollSpec;
use crate::core::job::KeyDomain;
use crate::core::siblings::{CallId, EngineCall, PollName, ReplicaName, ShareSpec, SiblingInput};

#[derive(Clone, Debug)]
pub(crate) struct Cluster;

impl Cluster {
    pub(crate) fn id(&self) -> &str {
        ""
    }
    pub(crate) fn poll_name(&self, route: &crate::core::route::Route, spec: &PollSpec) -> PollName {
        PollName(0)
    }
    pub(crate) fn register(&self, spec: &ShareSpec, authorization: &[u8]) {}
    pub(crate) fn forget(&self, name: PollName) {}
    pub(crate) fn call(&self, id: CallId, call: EngineCall) {}
    pub(crate) fn count_subscribers(&self, name: ReplicaName) {}
    pub(crate) fn resubscribe(&self) {}
}
