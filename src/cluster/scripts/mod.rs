//! The scripts of the engine. Each is one atomic step; its keys and its channel are declared and in one hash slot.
//!
//! They are loaded by `SCRIPT LOAD` when a link comes up and called by `EVALSHA`, so the gateway needs neither `EVAL` nor
//! the right to install functions, which would stay behind in the engine. A call with an argument of no script ends the
//! link; the next one loads them again.

use strum::VariantArray;

/// A script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub(super) enum EngineScript {
    Claim,
    Adopt,
    Land,
    Release,
    Detach,
    Publish,
    Beat,
    Refuse,
    Mark,
    Remove,
    Pause,
    Take,
    Removals,
    Review,
}

impl EngineScript {
    pub(super) fn source(self) -> &'static str {
        match self {
            Self::Claim => include_str!("claim.lua"),
            Self::Adopt => include_str!("adopt.lua"),
            Self::Land => include_str!("land.lua"),
            Self::Release => include_str!("release.lua"),
            Self::Detach => include_str!("detach.lua"),
            Self::Publish => include_str!("publish.lua"),
            Self::Beat => include_str!("beat.lua"),
            Self::Refuse => include_str!("refuse.lua"),
            Self::Mark => include_str!("mark.lua"),
            Self::Remove => include_str!("remove.lua"),
            Self::Pause => include_str!("pause.lua"),
            Self::Take => include_str!("take.lua"),
            Self::Removals => include_str!("removals.lua"),
            Self::Review => include_str!("review.lua"),
        }
    }
}
