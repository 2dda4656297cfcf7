//! Tests of the presets: their text, and sample bodies as the vendors document them.

use bytes::Bytes;

use super::*;
use crate::config::schema::{keys, preset_route};
use crate::core::job::JobSet;
use crate::core::job_body::{self, SplitBody};
use crate::core::query::{self, Query};
use crate::core::route::{Form, Goal, Route};

/// Samples of one preset: a URL, the job that it names, and bodies with the name of their state. An empty name: the ladder
/// does not have the word. An HTTP status before the body is that of the response.
struct Sample {
    preset: &'static str,
    url: &'static str,
    id: &'static str,
    rest: &'static str,
    bodies: &'static [(&'static str, &'static str)],
}

const SAMPLES: &[Sample] = &[
    Sample {
        preset: "suno",
        url: "/v2/generate/audio/suno-ai/clip?clip_id=a1",
        id: "a1",
        rest: "",
        bodies: &[
            (r#"{"id":"a1","status":"queued","audio_url":""}"#, "queued"),
            (r#"{"id":"a1","status":"streaming","audio_url":"https://cdn.example/a1.mp3"}"#, "streaming"),
            (r#"{"id":"a1","status":"complete","audio_url":"https://cdn.example/a1.mp3"}"#, "completed"),
            (r#"{"id":"a1","status":"error","metadata":{"error_type":"moderation"}}"#, "error"),
            (r#"{"id":"a1","status":"paused"}"#, ""),
        ],
    },
    Sample {
        preset: "aimlapi-video",
        url: "/v2/video/generations?generation_id=kling%3Aa1",
        id: "kling:a1",
        rest: "",
        bodies: &[
            (r#"{"id":"kling:a1","status":"waiting"}"#, "queued"),
            (r#"{"id":"kling:a1","status":"active"}"#, "generating"),
            (
                r#"{"id":"kling:a1","status":"completed","video":{"url":"https://cdn.example/v.mp4"}}"#,
                "completed",
            ),
            (r#"{"id":"kling:a1","status":"error","error":{"message":"no"}}"#, "error"),
            (r#"{"id":"kling:a1","status":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "aimlapi-audio",
        url: "/v2/generate/audio?generation_id=a1",
        id: "a1",
        rest: "",
        bodies: &[
            (r#"{"id":"a1","status":"queued"}"#, "queued"),
            (r#"{"id":"a1","status":"generating"}"#, "generating"),
            (
                r#"{"id":"a1","status":"completed","audio_file":{"url":"https://cdn.example/a.wav"}}"#,
                "completed",
            ),
            (r#"{"id":"a1","status":"error"}"#, "error"),
            (r#"{"id":"a1","status":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "aimlapi-luma",
        url: "/v2/generate/video/luma-ai/generation?generation_id=a1&state=completed",
        id: "a1",
        rest: "",
        bodies: &[
            (r#"{"id":"a1","state":"dreaming","video":null}"#, "dreaming"),
            (r#"{"id":"a1","state":"completed","video":{"url":"https://cdn.example/v.mp4"}}"#, "completed"),
            (r#"{"id":"a1","state":"failed","failure_reason":"moderation"}"#, "failed"),
            (r#"{"id":"a1","state":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "replicate",
        url: "/v1/predictions/gm3qorzdhgbfurvjtvhg6dckhu",
        id: "gm3qorzdhgbfurvjtvhg6dckhu",
        rest: "",
        bodies: &[
            (
                r#"{"id":"gm3qorzdhgbfurvjtvhg6dckhu","status":"starting","output":null,"error":null}"#,
                "starting",
            ),
            (r#"{"id":"gm3qorzdhgbfurvjtvhg6dckhu","status":"processing","logs":"…"}"#, "processing"),
            (
                r#"{"id":"gm3qorzdhgbfurvjtvhg6dckhu","status":"succeeded","output":["https://x.example"]}"#,
                "succeeded",
            ),
            (r#"{"id":"gm3qorzdhgbfurvjtvhg6dckhu","status":"canceled"}"#, "failed"),
            (r#"{"id":"gm3qorzdhgbfurvjtvhg6dckhu","status":"queued"}"#, ""),
        ],
    },
    Sample {
        preset: "fal",
        url: "/fal-ai/flux/requests/764cabcf/status?logs=1",
        id: "764cabcf",
        rest: "fal-ai/flux?logs=1",
        bodies: &[
            (
                r#"202 {"status":"IN_QUEUE","queue_position":0,"response_url":"https://queue.fal.run/r"}"#,
                "IN_QUEUE",
            ),
            (r#"202 {"status":"IN_PROGRESS","logs":[],"request_id":"764cabcf"}"#, "IN_PROGRESS"),
            (r#"{"status":"COMPLETED","logs":[],"metrics":{"inference_time":3.7}}"#, "COMPLETED"),
            (
                r#"{"status":"COMPLETED","error":"Request timed out","error_type":"request_timeout"}"#,
                "FAILED",
            ),
            (r#"{"status":"PAUSED"}"#, ""),
        ],
    },
    Sample {
        preset: "runpod",
        url: "/v2/ep1/status/c80ffee4-u1",
        id: "c80ffee4-u1",
        rest: "ep1",
        bodies: &[
            (r#"{"id":"c80ffee4-u1","status":"IN_QUEUE"}"#, "IN_QUEUE"),
            (r#"{"delayTime":31618,"id":"c80ffee4-u1","status":"RUNNING"}"#, "IN_PROGRESS"),
            (
                r#"{"id":"c80ffee4-u1","status":"COMPLETED","output":[{"image":"https://x.example"}]}"#,
                "COMPLETED",
            ),
            (r#"{"id":"c80ffee4-u1","status":"TIMED_OUT"}"#, "FAILED"),
            (r#"{"id":"c80ffee4-u1","status":"SLEEPING"}"#, ""),
        ],
    },
    Sample {
        preset: "openai-responses",
        url: "/v1/responses/resp_1?include[]=reasoning.encrypted_content",
        id: "resp_1",
        rest: "?include%5B%5D=reasoning.encrypted_content",
        bodies: &[
            (r#"{"id":"resp_1","object":"response","status":"queued","error":null}"#, "queued"),
            (r#"{"id":"resp_1","object":"response","status":"in_progress"}"#, "in_progress"),
            (
                r#"{"id":"resp_1","status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}"#,
                "completed",
            ),
            (r#"{"id":"resp_1","status":"failed","error":{"code":"server_error","message":"no"}}"#, "failed"),
            (r#"{"id":"resp_1","status":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "openai-videos",
        url: "/v1/videos/video_123",
        id: "video_123",
        rest: "",
        bodies: &[
            (r#"{"id":"video_123","object":"video","status":"in_progress","progress":33}"#, "in_progress"),
            (r#"{"id":"video_123","object":"video","status":"completed","progress":100}"#, "completed"),
            (r#"{"id":"video_123","status":"failed","error":{"code":"moderation_blocked"}}"#, "failed"),
            (r#"{"id":"video_123","status":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "openai-batches",
        url: "/v1/batches/batch_abc123",
        id: "batch_abc123",
        rest: "",
        bodies: &[
            (r#"{"id":"batch_abc123","object":"batch","status":"cancelling"}"#, "in_progress"),
            (r#"{"id":"batch_abc123","status":"finalizing"}"#, "finalizing"),
            (r#"{"id":"batch_abc123","status":"completed","output_file_id":"file-cvaTdG"}"#, "completed"),
            (r#"{"id":"batch_abc123","status":"expired"}"#, "failed"),
            (r#"{"id":"batch_abc123","status":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "luma",
        url: "/dream-machine/v1/generations/d1968551",
        id: "d1968551",
        rest: "",
        bodies: &[
            (r#"{"id":"d1968551","state":"dreaming","failure_reason":null,"assets":null}"#, "dreaming"),
            (r#"{"id":"d1968551","state":"completed","assets":{"video":"https://x.example"}}"#, "completed"),
            (r#"{"id":"d1968551","state":"failed","failure_reason":"no"}"#, "failed"),
            (r#"{"id":"d1968551","state":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "bfl",
        url: "/v1/get_result?id=f3a8",
        id: "f3a8",
        rest: "",
        bodies: &[
            (r#"{"id":"f3a8","status":"Pending","result":null,"progress":0.3}"#, "Pending"),
            (r#"{"id":"f3a8","status":"Ready","result":{"sample":"https://x.example"}}"#, "Ready"),
            (r#"{"id":"f3a8","status":"Content Moderated","result":null}"#, "Error"),
            (r#"{"id":"f3a8","status":"Task not found"}"#, ""),
        ],
    },
    Sample {
        preset: "assemblyai",
        url: "/v2/transcript/9ea68fd3",
        id: "9ea68fd3",
        rest: "",
        bodies: &[
            (r#"{"id":"9ea68fd3","status":"processing","text":null}"#, "processing"),
            (r#"{"id":"9ea68fd3","status":"completed","text":"Hello"}"#, "completed"),
            (r#"{"id":"9ea68fd3","status":"error","error":"no audio"}"#, "error"),
            (r#"{"id":"9ea68fd3","status":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "google-lro",
        url: "/v1beta/models/veo-3.0-generate-001/operations/u3b9",
        id: "u3b9",
        rest: "veo-3.0-generate-001",
        bodies: &[
            (r#"{"name":"models/veo-3.0-generate-001/operations/u3b9"}"#, "running"),
            (r#"{"name":"models/veo-3.0-generate-001/operations/u3b9","done":false}"#, "running"),
            (r#"{"name":"models/veo-3.0-generate-001/operations/u3b9","done":true,"response":{}}"#, "done"),
            (r#"{"name":"o","done":true,"error":{"code":3,"message":"no"}}"#, "failed"),
            (r#"{"name":"o","done":"maybe"}"#, ""),
        ],
    },
    Sample {
        preset: "azure-lro",
        url: "/documentintelligence/documentModels/prebuilt-layout/analyzeResults/b4f6?api-version=2024-11-30",
        id: "b4f6",
        rest: "prebuilt-layout?api-version=2024-11-30",
        bodies: &[
            (r#"{"status":"notStarted","createdDateTime":"2026-11-02T10:00:00Z"}"#, "NotStarted"),
            (r#"{"status":"running"}"#, "Running"),
            (r#"{"status":"succeeded","analyzeResult":{}}"#, "Succeeded"),
            (r#"{"status":"Failed","error":{"code":"InvalidRequest"}}"#, "Failed"),
            (r#"{"status":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "runway",
        url: "/v1/tasks/d2e3d1f4",
        id: "d2e3d1f4",
        rest: "",
        bodies: &[
            (r#"{"id":"d2e3d1f4","status":"THROTTLED","createdAt":"2026-11-02T10:00:00Z"}"#, "PENDING"),
            (r#"{"id":"d2e3d1f4","status":"RUNNING","progress":0.5}"#, "RUNNING"),
            (r#"{"id":"d2e3d1f4","status":"SUCCEEDED","output":["https://x.example"]}"#, "SUCCEEDED"),
            (r#"{"id":"d2e3d1f4","status":"FAILED","failure":"no","failureCode":"SAFETY"}"#, "FAILED"),
            (r#"{"id":"d2e3d1f4","status":"LOST"}"#, ""),
        ],
    },
    Sample {
        preset: "anthropic-batches",
        url: "/v1/messages/batches/msgbatch_013",
        id: "msgbatch_013",
        rest: "",
        bodies: &[
            (
                r#"{"id":"msgbatch_013","type":"message_batch","processing_status":"in_progress"}"#,
                "in_progress",
            ),
            (r#"{"id":"msgbatch_013","processing_status":"canceling"}"#, "canceling"),
            (
                r#"{"id":"msgbatch_013","processing_status":"ended","results_url":"https://x.example"}"#,
                "ended",
            ),
            (r#"{"id":"msgbatch_013","processing_status":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "apify",
        url: "/v2/actor-runs/HG7ML7M8z78?waitForFinish=60",
        id: "HG7ML7M8z78",
        rest: "",
        bodies: &[
            (r#"{"data":{"id":"HG7ML7M8z78","actId":"x","status":"RUNNING"}}"#, "READY"),
            (r#"{"data":{"id":"HG7ML7M8z78","status":"SUCCEEDED","exitCode":0}}"#, "SUCCEEDED"),
            (r#"{"data":{"id":"HG7ML7M8z78","status":"TIMED-OUT"}}"#, "FAILED"),
            (r#"{"data":{"id":"HG7ML7M8z78","status":"LOST"}}"#, ""),
        ],
    },
    Sample {
        preset: "dashscope",
        url: "/api/v1/tasks/13b1848b",
        id: "13b1848b",
        rest: "",
        bodies: &[
            (r#"{"request_id":"r","output":{"task_id":"13b1848b","task_status":"PENDING"}}"#, "PENDING"),
            (r#"{"request_id":"r","output":{"task_id":"13b1848b","task_status":"SUSPENDED"}}"#, "RUNNING"),
            (r#"{"output":{"task_id":"13b1848b","task_status":"SUCCEEDED","results":[]}}"#, "SUCCEEDED"),
            (r#"{"output":{"task_id":"13b1848b","task_status":"FAILED","code":"InvalidURL"}}"#, "FAILED"),
            (r#"{"output":{"task_id":"13b1848b","task_status":"UNKNOWN"}}"#, ""),
        ],
    },
    Sample {
        preset: "kling",
        url: "/v1/videos/text2video/CjikY2gH",
        id: "CjikY2gH",
        rest: "text2video",
        bodies: &[
            (r#"{"code":0,"data":{"task_id":"CjikY2gH","task_status":"processing"}}"#, "processing"),
            (
                r#"{"code":0,"data":{"task_id":"CjikY2gH","task_status":"succeed","task_result":{}}}"#,
                "succeed",
            ),
            (r#"{"code":0,"data":{"task_id":"CjikY2gH","task_status":"failed"}}"#, "failed"),
            (r#"{"code":0,"data":{"task_id":"CjikY2gH","task_status":"lost"}}"#, ""),
        ],
    },
    Sample {
        preset: "minimax",
        url: "/v1/query/video_generation?task_id=176843862716480",
        id: "176843862716480",
        rest: "",
        bodies: &[
            (
                r#"{"task_id":"176843862716480","status":"Preparing","base_resp":{"status_code":0}}"#,
                "Queueing",
            ),
            (r#"{"task_id":"176843862716480","status":"Processing"}"#, "Processing"),
            (r#"{"task_id":176843862716480,"status":"Success","file_id":"205258526306433"}"#, "Success"),
            (r#"{"task_id":"176843862716480","status":"Fail"}"#, "Fail"),
            (r#"{"task_id":"176843862716480","status":"Lost"}"#, ""),
        ],
    },
    Sample {
        preset: "elevenlabs-dubbing",
        url: "/v1/dubbing/21m00Tcm",
        id: "21m00Tcm",
        rest: "",
        bodies: &[
            (r#"{"dubbing_id":"21m00Tcm","name":"n","status":"dubbing","error":null}"#, "dubbing"),
            (r#"{"dubbing_id":"21m00Tcm","status":"dubbed","target_languages":["es"]}"#, "dubbed"),
            (r#"{"dubbing_id":"21m00Tcm","status":"failed","error":"no"}"#, "failed"),
            (r#"{"dubbing_id":"21m00Tcm","status":"lost"}"#, ""),
        ],
    },
    Sample {
        preset: "by-code",
        url: "/v2beta/results/e52772ac",
        id: "e52772ac",
        rest: "",
        bodies: &[
            (r#"202 {"id":"e52772ac","status":"in-progress"}"#, "running"),
            (r#"{"result":"AAAA"}"#, "done"),
            ("203 not JSON", ""),
        ],
    },
];

/// Returns whether a line of a preset is one of `[auth]`.
fn is_of_auth(line: &str) -> bool {
    ["headers = ", "with_key = ", "send = "].iter().any(|start| line.starts_with(start))
}

fn names() -> Vec<&'static str> {
    presets().iter().map(|preset| preset.name.as_str()).collect()
}

fn route(name: &str) -> Route {
    preset_route(preset(name).unwrap()).unwrap()
}

#[test]
fn each_preset_reads_the_bodies_that_its_vendor_documents() {
    assert_eq!(SAMPLES.iter().map(|sample| sample.preset).collect::<Vec<_>>(), names());
    for Sample { preset, url, id, rest, bodies } in SAMPLES {
        let route = route(preset);
        let (path, query) = url.split_once('?').map_or((*url, None), |(path, query)| (path, Some(query)));
        let Query::Wait(wait) = query::parse(&route.clone().into(), path, query, 6) else {
            panic!("{preset}: {url} is not understood")
        };
        let [job] = &wait.asked[..] else { panic!("{preset}: {wait:?}") };
        assert_eq!((job.as_str(), job.rest(), wait.form), (*id, *rest, Form::Single), "{preset}");
        let jobs = JobSet::new([job.clone()]);
        // The target of a poll names the same job.
        let target = query::build_target(&route, Form::Single, &jobs, Goal::Now);
        let (path, query) =
            target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
        assert!(
            matches!(query::parse(&route.clone().into(), path, query, 6), Query::Wait(wait) if wait.asked == [job.clone()]),
            "{preset}: {target}"
        );
        let mut kinds = [false; 4];
        for (sample, state) in *bodies {
            let code = sample.split(' ').next().and_then(|code| code.parse().ok());
            let body = if code.is_some() { &sample[4..] } else { sample };
            let body = Bytes::from_static(body.as_bytes());
            let split = job_body::split(&route, Form::Single, &jobs, code.unwrap_or(200), &body);
            let SplitBody::Jobs { jobs, .. } = split else {
                panic!("{preset}: {sample} is not split: {split:?}")
            };
            let rung = jobs[0].rung;
            assert_eq!(rung.map_or("", |rung| route.ladder.name(rung)), *state, "{preset}: {sample}");
            let kind = match rung {
                None => 0,
                Some(rung) if route.ladder.is_failure(rung) => 1,
                Some(rung) if route.ladder.is_terminal(rung) => 2,
                Some(_) => 3,
            };
            kinds[kind] = true;
        }
        let fails = route.ladder.rungs().any(|rung| route.ladder.is_failure(rung));
        assert_eq!(kinds, [true, fails, true, true], "{preset}: a kind of body has no sample");
    }
}

#[test]
fn the_printed_lines_of_a_preset_are_a_valid_configuration_with_its_route() {
    assert_eq!(names().len(), 23);
    // `auth.headers` and `auth.send` are keys of their own.
    let has_auth = keys().any(|key| key.name == "auth.send");
    for preset in presets() {
        let lines = preset.lines();
        assert!(lines.contains("2026") && lines.starts_with("# "), "{lines}");
        assert!(lines.contains(&format!("base_url = \"{}\"", preset.base_url)), "{lines}");
        let is_read = |line: &&str| has_auth || !is_of_auth(line);
        let text = lines.lines().filter(is_read).collect::<Vec<_>>().join("\n");
        let config = load(&text, &[]).unwrap_or_else(|errors| panic!("{lines}\n{errors}"));
        assert_eq!(config.routes, [route(&preset.name)]);
        let host = config.upstream.base_url.host().unwrap().to_ascii_lowercase();
        assert!(preset.is_for_host(&host), "{lines}");
        let auth: Vec<&str> = lines.lines().filter(|line| is_of_auth(line)).collect();
        let named = format!(
            "[upstream]\nbase_url = \"{}\"\n[auth]\n{}\n[[routes]]\npreset = \"{}\"",
            preset.base_url,
            auth.join("\n"),
            preset.name
        );
        let named = load(&named, &[]).unwrap();
        assert_eq!((&named.routes, named.warnings()), (&config.routes, vec![]), "{}", preset.name);
    }
}

#[test]
fn the_preset_of_the_built_in_route_behaves_like_it() {
    let (preset, built_in) = (route("suno"), Route::suno());
    assert_eq!(Route { lifetimes: built_in.lifetimes, ..preset.clone() }, built_in);
    assert_eq!(preset.lifetimes.success, Some(Config::default().cache.completed_ttl));
    assert_eq!((preset.lifetimes.live, preset.lifetimes.failure), (None, None));
}

#[test]
fn a_preset_for_another_host_or_unusual_times_have_a_warning() {
    let warnings = |toml: &str| load(toml, &[]).unwrap().warnings();
    let other = warnings("[[routes]]\npreset = \"replicate\"\n");
    assert_eq!(other.len(), 1);
    assert!(
        other[0]
            .starts_with("routes: \"replicate\" has the preset \"replicate\" of https://api.replicate.com")
    );
    let base = "upstream.base_url = \"https://queue.fal.run\"\n[[routes]]\npreset = \"fal\"\n";
    assert_eq!(warnings(base), [""; 0]);
    let quick = warnings(&format!("{base}pace = \"100ms\"\ncompleted_ttl = \"2h\"\n"));
    assert!(quick[0].starts_with("routes: pace of \"fal\" is 100ms: each job"), "{quick:?}");
    assert!(quick[0].contains("up to 10 requests per second"), "{quick:?}");
    assert!(quick[1].starts_with("routes: completed_ttl of \"fal\" is 2h"), "{quick:?}");
    assert_eq!(quick.len(), 2);
}

#[test]
fn a_preset_whose_lines_of_auth_the_configuration_lacks_has_a_warning() {
    let sidecar = "auth.mode = \"sidecar\"\nupstream.api_key = \"k\"\n";
    let team = "auth.mode = \"team\"\nteam.members = [{ name = \"a\", upstream_key = \"k\", token_sha256 = \
                \"0000000000000000000000000000000000000000000000000000000000000000\" }]\n";
    let open = "auth.mode = \"open\"\n";
    let x_key = "auth.headers = [\"X-Key\"]\n";
    let send = "auth.send = \"X-Key: {key}\"\n";
    let versions = "auth.headers = [\"authorization\", \"x-runway-version\"]\n";
    let version = "auth.with_key = [\"x-runway-version\"]\n";
    let cases: [(&str, &[&str], &str); 13] = [
        ("bfl", &[], "headers = [\"x-key\"]"),
        ("bfl", &[x_key], ""),
        ("bfl", &[sidecar], "send = \"x-key: {key}\""),
        ("bfl", &[sidecar, send], ""),
        ("bfl", &[team, send], ""),
        ("bfl", &[open], ""),
        ("fal", &[], ""),
        ("fal", &[team], "send = \"authorization: Key {key}\""),
        ("replicate", &[sidecar], ""),
        ("runway", &[], "with_key = [\"x-runway-version\"]"),
        ("runway", &[version], ""),
        ("runway", &[versions], ""),
        ("runway", &[sidecar], "with_key = [\"x-runway-version\"]"),
    ];
    for (name, lines, expected) in cases {
        let base_url = &preset(name).unwrap().base_url;
        let toml = format!(
            "upstream.base_url = \"{base_url}\"\n{}[[routes]]\npreset = \"{name}\"\n",
            lines.concat()
        );
        let warnings = load(&toml, &[]).unwrap().warnings();
        assert_eq!(warnings.len(), usize::from(!expected.is_empty()), "{toml} {warnings:?}");
        assert!(
            warnings.iter().all(|warning| warning.contains(&format!("needs {expected} in [auth]"))),
            "{warnings:?}"
        );
    }
}

#[test]
fn a_live_ttl_over_the_pace_has_a_warning_unless_it_is_the_presets() {
    let route =
        "[[routes]]\nname = \"jobs\"\npath = \"/jobs/{id}\"\npending = [\"a\"]\nsucceeded = [\"b\"]\n";
    let warnings = |lines: &str| load(&format!("{route}{lines}"), &[]).unwrap().warnings();
    assert_eq!(warnings("pace = \"2s\"\nlive_ttl = \"2s\"\n"), [""; 0]);
    assert_eq!(warnings("pace = \"2s\"\n"), [""; 0]);
    let [longer] = &warnings("pace = \"2s\"\nlive_ttl = \"3s\"\n")[..] else { panic!() };
    assert!(longer.starts_with("routes: live_ttl of \"jobs\" is 3s, longer than its pace of 2s"), "{longer}");
    assert_eq!(warnings("hold = \"10s\"\nwait_param = \"until\"\nlive_ttl = \"3s\"\n"), [""; 0]);
}

/// A poll carries the fields of `auth.headers` alone, so a field that selects the account must be one of them (P11).
#[test]
fn presets_list_the_fields_that_select_the_account() {
    let openai = &["authorization", "openai-organization", "openai-project"][..];
    for (name, fields) in [
        ("openai-responses", openai),
        ("openai-videos", openai),
        ("openai-batches", openai),
        ("anthropic-batches", &["x-api-key", "authorization"]),
    ] {
        let auth = load(&preset(name).unwrap().lines(), &[]).unwrap().auth;
        for field in fields {
            assert!(auth.headers.iter().any(|listed| listed == field), "{name}: {field}");
        }
    }
}

#[test]
fn the_page_of_routes_has_the_address_and_the_lines_of_auth_of_each_preset() {
    let page = include_str!("../../../docs/routes.md");
    for preset in presets() {
        let mut rows = page.lines().filter(|line| line.starts_with("| `") && line.contains("://"));
        let row = rows.find(|row| row.contains(&format!("`{}`", preset.name)));
        let row = row.unwrap_or_else(|| panic!("docs/routes.md has no row for {}", preset.name));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[2], format!("`{}`", preset.base_url), "{}", preset.name);
        let text = preset.lines();
        let auth = text.lines().filter(|line| is_of_auth(line));
        let auth: Vec<String> = auth.map(|line| format!("`{line}`")).collect();
        assert_eq!(cells[3], auth.join(", "), "{}", preset.name);
    }
}
