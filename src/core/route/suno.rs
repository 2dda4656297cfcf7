//! The built-in route: AIMLAPI's Suno clips.

use std::time::Duration;

use super::{
    Form, JsonPointer, Ladder, Lifetimes, ListEndpoint, ListForm, PathTemplate, Route, RungSpec, StatusSource,
};

/// Time after which the upstream answers with the current state, reached or not.
pub(super) const HOLD: Duration = Duration::from_secs(120);

/// Most clips in one request.
const MAX_CLIPS: usize = 6;

/// Paths, parameters and states of the built-in route, for clients and the simulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SunoEndpoints {
    /// Path for the state of one clip.
    pub single_path: String,
    /// Path for the states of several clips.
    pub multi_path: String,
    /// Query parameter for the one id.
    pub single_param: String,
    /// Repeated query parameter for the ids, without brackets.
    pub multi_param: String,
    /// Query parameter for the rung to wait for.
    pub status_param: String,
    /// States of a clip, first to last.
    pub ladder: Ladder,
}

impl Default for SunoEndpoints {
    fn default() -> Self {
        Self {
            single_path: "/v2/generate/audio/suno-ai/clip".to_owned(),
            multi_path: "/v2/generate/audio/suno-ai/clips".to_owned(),
            single_param: "clip_id".to_owned(),
            multi_param: "clip_ids".to_owned(),
            status_param: "status".to_owned(),
            ladder: Ladder::new(vec![
                RungSpec::pending("submitted"),
                RungSpec::pending("queued"),
                RungSpec::pending("streaming"),
                RungSpec::succeeded("completed").with_aliases(&["complete"]),
                RungSpec::failed("error"),
            ]),
        }
    }
}

impl SunoEndpoints {
    /// Returns the endpoint that has this path.
    pub fn form(&self, path: &str) -> Option<Form> {
        if path == self.single_path {
            Some(Form::Single)
        } else if path == self.multi_path {
            Some(Form::Multi)
        } else {
            None
        }
    }
}

pub(super) fn route(hold: Duration) -> Route {
    let SunoEndpoints { single_path, multi_path, single_param, multi_param, status_param, ladder } =
        SunoEndpoints::default();
    let pointer = |text| JsonPointer::parse(text).expect("the pointer is valid");
    Route {
        name: "suno".to_owned(),
        path: PathTemplate::parse(&single_path).expect("the path is valid"),
        id_param: Some(single_param),
        params: Vec::new(),
        list: Some(ListEndpoint {
            path: multi_path,
            param: multi_param,
            form: ListForm::Brackets,
            max: MAX_CLIPS,
        }),
        id: Some(pointer("/id")),
        status: StatusSource::Body(pointer("/status")),
        error: None,
        ladder,
        hold,
        wait_param: Some(status_param),
        hold_param: None,
        pace: Duration::ZERO,
        max_pace: Duration::ZERO,
        default_wait: Duration::ZERO,
        lifetimes: Lifetimes::default(),
        actions: Vec::new(),
        is_built_in: true,
    }
}
