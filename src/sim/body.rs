//! The JSON of clips. It grows with the status, to about 2 kB for a completed clip.
//!
//! Equal ids and statuses give equal bytes. The JSON is hard to split on purpose: `status` comes late, it contains ids
//! and status words of other clips, and its texts are full of quotes and braces.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use fastrand::Rng;
use serde::Serialize;

use super::job::{ClipState, id_seed};
use super::options::ListFormat;
use crate::core::route::Ladder;

/// The fields that a clip's JSON has at its status.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// No media yet.
    Waiting,
    /// Streaming audio, while the clip is generated.
    Playable,
    /// All fields.
    Made,
    /// An error message.
    Failed,
}

impl Detail {
    fn of_state(ladder: &Ladder, state: &ClipState) -> Self {
        let Some(rung) = state.rung else { return Self::Waiting };
        match (ladder.is_terminal(rung), ladder.is_askable(rung)) {
            (true, true) => Self::Made,
            (true, false) => Self::Failed,
            (false, _) if ladder.next(rung).is_some_and(|next| ladder.is_terminal(next)) => Self::Playable,
            (false, _) => Self::Waiting,
        }
    }
}

#[derive(Serialize)]
struct ClipBody<'a> {
    id: &'a str,
    video_url: String,
    audio_url: String,
    image_url: Option<String>,
    image_large_url: Option<String>,
    is_video_pending: bool,
    major_model_version: &'a str,
    model_name: &'a str,
    metadata: Metadata<'a>,
    is_liked: bool,
    user_id: &'a str,
    display_name: &'a str,
    handle: &'a str,
    is_handle_updated: bool,
    is_trashed: bool,
    reaction: Option<&'a str>,
    created_at: String,
    status: &'a str,
    title: &'a str,
    play_count: u32,
    upvote_count: u32,
    is_public: bool,
}

#[derive(Serialize)]
struct Metadata<'a> {
    tags: &'a str,
    prompt: String,
    gpt_description_prompt: Option<&'a str>,
    audio_prompt_id: Option<&'a str>,
    history: Option<[Ancestor<'a>; 1]>,
    concat_history: Option<&'a str>,
    #[serde(rename = "type")]
    kind: &'a str,
    duration: Option<f64>,
    refund_credits: bool,
    stream: bool,
    error_type: Option<&'a str>,
    error_message: Option<&'a str>,
}

/// The clip that a continued clip begins with.
#[derive(Serialize)]
struct Ancestor<'a> {
    id: &'a str,
    status: &'a str,
    continue_at: f64,
}

const TITLES: [&str; 4] = ["Night drive", "\"Quoted\" heart", "Größer als Berlin", "夜の歌 🎵"];
const TAGS: [&str; 4] = ["synthwave, slow", "folk, acoustic guitar", "drum & bass", "lo-fi, {raw}, [tape]"];
const LINES: [&str; 6] = [
    "[Verse]",
    "Headlights paint the empty road, the radio is low and gold",
    "You said \"status\": \"error\", I said },{ and let it go",
    "Counting all the stars we passed, naming none of them at all",
    "Backslash rain \\ on the glass, a slash of light / along the wall",
    "Où vont les nuits ? A star knows — ночь длинна, the night is slow",
];
/// Lines of a clip's lyrics.
const LINE_COUNT: usize = 18;

/// Returns the JSON object of one clip.
pub(super) fn clip(ladder: &Ladder, id: &str, state: &ClipState) -> Bytes {
    let detail = Detail::of_state(ladder, state);
    let mut rng = Rng::with_seed(id_seed(id));
    let (title, tags) = (TITLES[rng.usize(..TITLES.len())], TAGS[rng.usize(..TAGS.len())]);
    let is_continued = rng.u8(..4) == 0;
    let duration = 120.0 + f64::from(rng.u32(..600)) / 10.0;
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + rng.u64(..31_536_000));
    let has_sound = matches!(detail, Detail::Playable | Detail::Made);
    let image = |size: &str| has_sound.then(|| format!("https://cdn2.suno.ai/image{size}_{id}.jpeg"));

    let body = ClipBody {
        id,
        video_url: if detail == Detail::Made {
            format!("https://cdn1.suno.ai/{id}.mp4")
        } else {
            String::new()
        },
        audio_url: match detail {
            Detail::Waiting | Detail::Failed => String::new(),
            Detail::Playable => format!("https://audiopipe.suno.ai/?item_id={id}"),
            Detail::Made => format!("https://cdn1.suno.ai/{id}.mp3"),
        },
        image_url: image(""),
        image_large_url: image("_large"),
        is_video_pending: detail == Detail::Playable,
        major_model_version: "v3",
        model_name: "chirp-v3",
        metadata: Metadata {
            tags,
            prompt: if has_sound { lyrics(&mut rng) } else { LINES[1].to_owned() },
            gpt_description_prompt: None,
            audio_prompt_id: None,
            history: is_continued.then_some([Ancestor {
                id: "00000000-0000-4000-8000-000000000000",
                status: ladder.body_word(ladder.lowest()),
                continue_at: 61.5,
            }]),
            concat_history: None,
            kind: "gen",
            duration: (detail == Detail::Made).then_some(duration),
            refund_credits: detail == Detail::Failed,
            stream: true,
            error_type: (detail == Detail::Failed).then_some("generation_failed"),
            error_message: (detail == Detail::Failed)
                .then_some("The song could not be made; try other words."),
        },
        is_liked: false,
        user_id: "87e9ed35-1a4b-4a2d-9f0e-2b1f7b0a1a11",
        display_name: "Simulated User",
        handle: "simulateduser",
        is_handle_updated: false,
        is_trashed: false,
        reaction: None,
        created_at: humantime::format_rfc3339_millis(created).to_string(),
        status: &state.word,
        title,
        play_count: 0,
        upvote_count: 0,
        is_public: false,
    };
    serde_json::to_vec(&body).expect("texts, numbers and lists are JSON").into()
}

/// Returns the body for several clips, from their ids and bytes.
pub(super) fn clips(format: ListFormat, clips: &[(&str, Bytes)]) -> Bytes {
    let mut all = BytesMut::new();
    let list = |all: &mut BytesMut, before: &[u8], after: &[u8], with_ids: bool| {
        all.put_slice(before);
        for (n, (id, body)) in clips.iter().enumerate() {
            if n > 0 {
                all.put_u8(b',');
            }
            if with_ids {
                all.put_slice(&serde_json::to_vec(id).expect("a text is JSON"));
                all.put_u8(b':');
            }
            all.put_slice(body);
        }
        all.put_slice(after);
    };
    match format {
        ListFormat::Array => list(&mut all, b"[", b"]", false),
        ListFormat::Object => list(&mut all, b"{\"clips\":[", b"]}", false),
        ListFormat::Map => list(&mut all, b"{", b"}", true),
        ListFormat::Summary => {
            let bytes: usize = clips.iter().map(|(_, body)| body.len()).sum();
            all.put_slice(
                format!("{{\"summary\":{{\"count\":{},\"bytes\":{bytes}}}}}", clips.len()).as_bytes(),
            );
        }
    }
    all.freeze()
}

fn lyrics(rng: &mut Rng) -> String {
    let mut text = String::new();
    for _ in 0..LINE_COUNT {
        let _ = writeln!(text, "{}", LINES[rng.usize(..LINES.len())]);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::core::route::Route;

    fn body(id: &str, word: &str) -> Value {
        let ladder = Route::suno().ladder;
        serde_json::from_slice(&clip(&ladder, id, &ClipState::from_word(&ladder, word))).unwrap()
    }

    #[test]
    fn a_clip_has_more_fields_at_later_statuses() {
        let (queued, streaming) = (body("a", "queued"), body("a", "streaming"));
        let (made, failed) = (body("a", "completed"), body("a", "error"));
        assert_eq!([&queued["audio_url"], &queued["video_url"], &streaming["video_url"]], ["", "", ""]);
        assert!(streaming["audio_url"].as_str().unwrap().starts_with("https://"));
        assert!(made["video_url"].as_str().unwrap().ends_with("a.mp4"));
        assert!(made["metadata"]["duration"].is_f64() && streaming["metadata"]["duration"].is_null());
        assert!(
            failed["metadata"]["error_message"].is_string() && failed["metadata"]["error_type"].is_string()
        );
        assert!(made["metadata"]["error_message"].is_null());
        assert!(made["metadata"]["prompt"].is_string() && made["metadata"]["tags"].is_string());
    }

    #[test]
    fn a_completed_clip_has_the_status_complete_as_in_the_real_api() {
        assert_eq!(body("a", "completed")["status"], "complete");
        assert_eq!(body("a", "complete"), body("a", "completed"));
        assert_eq!(body("a", "streaming")["status"], "streaming");
        assert_eq!(body("a", "paused")["status"], "paused");
    }

    #[test]
    fn equal_ids_and_statuses_give_equal_bytes_of_about_2_kilobytes() {
        let ladder = Route::suno().ladder;
        let made = ClipState::from_word(&ladder, "completed");
        for n in 0..100 {
            let id = format!("clip-{n}");
            let bytes = clip(&ladder, &id, &made);
            assert_eq!(bytes, clip(&ladder, &id, &made));
            assert!((1500..2600).contains(&bytes.len()), "{}", bytes.len());
        }
        assert_ne!(clip(&ladder, "a", &made), clip(&ladder, "b", &made));
    }

    #[test]
    fn every_list_format_is_json_around_the_bytes_of_the_clips() {
        let parts = [("a", Bytes::from_static(b"{\"id\":\"a\"}")), ("b\"", Bytes::from_static(b"{}"))];
        assert_eq!(clips(ListFormat::Array, &parts), "[{\"id\":\"a\"},{}]");
        assert_eq!(clips(ListFormat::Object, &parts), "{\"clips\":[{\"id\":\"a\"},{}]}");
        assert_eq!(clips(ListFormat::Map, &parts), "{\"a\":{\"id\":\"a\"},\"b\\\"\":{}}");
        assert_eq!(clips(ListFormat::Summary, &parts), "{\"summary\":{\"count\":2,\"bytes\":12}}");
    }
}
