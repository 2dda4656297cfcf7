use super::*;

fn id(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

fn set(ids: &[&str]) -> JobSet {
    JobSet::new(ids.iter().map(|text| id(text)))
}

fn split_text(form: Form, requested: &[&str], body: &str) -> SplitBody {
    split(&Route::suno(), form, &set(requested), 200, &Bytes::copy_from_slice(body.as_bytes()))
}

/// Returns split jobs, given as (id, status word or "" for none, body).
fn jobs(shape: Option<ListShape>, jobs: &[(&str, &str, &str)]) -> SplitBody {
    let job = |&(name, word, body): &(&str, &str, &str)| JobSlice {
        id: id(name),
        rung: Route::suno().ladder.rung(word),
        body: Bytes::copy_from_slice(body.as_bytes()),
    };
    SplitBody::Jobs { jobs: jobs.iter().map(job).collect(), shape }
}

fn wrapped(name: &str) -> ListShape {
    ListShape::Wrapped(name.to_owned())
}

/// Checks each case of a table, and the number of cases.
fn each<T>(count: usize, cases: Vec<T>, check: impl Fn(T)) {
    assert_eq!(cases.len(), count, "cases were added or lost");
    cases.into_iter().for_each(check);
}

#[test]
fn a_single_job_is_the_complete_body_byte_for_byte() {
    let cases = vec![
        (r#"{"id":"a","status":"streaming"}"#, "streaming"),
        ("\r\n {\"status\" : \"queued\",\t\"id\":\"a\" , \"title\":\"\\u00e9\"}\n\n", "queued"),
        (r#"{"id":"a","status":"complete"}"#, "completed"),
        (r#"{"id":"a","status":"completed"}"#, "completed"),
        (r#"{"id":"a","status":"error","error":{"id":"b","status":"queued"}}"#, "error"),
        (r#"{"\u0069d":"\u0061","st\u0061tus":"\u0071ueued"}"#, "queued"),
        // a missing or unknown status
        (r#"{"id":"a"}"#, ""),
        (r#"{"id":"a","status":"paused"}"#, ""),
        (r#"{"id":"a","status":"Complete"}"#, ""),
        (r#"{"id":"a","status":null}"#, ""),
        (r#"{"id":"a","status":3}"#, ""),
        (r#"{"id":"a","status":{"status":"queued"}}"#, ""),
        (r#"{"id":"a","status":"\ud800"}"#, ""),
        // other members may have any value
        (r#"{"id":"a","x":1,"x":1e999,"Id":7,"status":"queued","":[]}"#, "queued"),
        (r#"{"x":"\ud800","id":"a"}"#, ""),
    ];
    each(15, cases, |(body, word)| {
        assert_eq!(split_text(Form::Single, &["a"], body), jobs(None, &[("a", word, body)]), "{body}");
    });
}

#[test]
fn several_jobs_are_split_by_id_in_every_shape() {
    let cases = vec![
        (r#"[{"id":"a","status":"queued"},{"id":"b"}]"#, ListShape::Array),
        (r#"[{"id":"b"},{"id":"a","status":"queued"}]"#, ListShape::Array),
        ("\n[ {\"id\":\"b\"}\t,\r\n{\"id\":\"a\",\"status\":\"queued\"} ] ", ListShape::Array),
        (r#"{"clips":[{"id":"b"},{"id":"a","status":"queued"}]}"#, wrapped("clips")),
        (r#" { "\u0064ata" : [ {"id":"b"} , {"id":"a","status":"queued"} ] } "#, wrapped("data")),
        (r#"{"a":[{"id":"b"},{"id":"a","status":"queued"}]}"#, wrapped("a")),
        (r#"{"":[{"id":"b"},{"id":"a","status":"queued"}]}"#, wrapped("")),
        (r#"{"b":{"id":"b"},"a":{"id":"a","status":"queued"}}"#, ListShape::Map),
        (r#" { "\u0061" : {"id":"a","status":"queued"} , "b" : {"id":"b"} } "#, ListShape::Map),
    ];
    each(9, cases, |(body, shape)| {
        let expected = jobs(
            Some(shape),
            &[("a", "queued", r#"{"id":"a","status":"queued"}"#), ("b", "", r#"{"id":"b"}"#)],
        );
        assert_eq!(split_text(Form::Multi, &["b", "a"], body), expected, "{body}");
    });
}

#[test]
fn in_a_map_the_names_are_the_ids_and_the_jobs_need_none() {
    let cases = vec![
        (r#"{"a":{"status":"queued"}}"#, "a", "queued", r#"{"status":"queued"}"#, ListShape::Map),
        (r#"{"a":{}}"#, "a", "", "{}", ListShape::Map),
        // an id that looks like the name of a list
        (r#"{"clips":{"status":"queued"}}"#, "clips", "queued", r#"{"status":"queued"}"#, ListShape::Map),
        (r#"{"clips":[{"id":"clips"}]}"#, "clips", "", r#"{"id":"clips"}"#, wrapped("clips")),
        // ids that look like members of a job
        (r#"{"id":{"id":"id"}}"#, "id", "", r#"{"id":"id"}"#, ListShape::Map),
        (r#"{"status":{"id":"status"}}"#, "status", "", r#"{"id":"status"}"#, ListShape::Map),
    ];
    each(6, cases, |(body, id, word, job, shape)| {
        assert_eq!(split_text(Form::Multi, &[id], body), jobs(Some(shape), &[(id, word, job)]), "{body}");
    });
}

#[test]
fn json_that_is_not_exactly_the_requested_jobs_is_unsplit() {
    let single = vec![
        r#"{"id":"b","status":"queued"}"#,
        r#"{"id":"A"}"#,
        r#"{"id":"a "}"#,
        r#"{"status":"queued"}"#,
        r#"{"id":1}"#,
        r#"{"id":null}"#,
        r#"{"id":["a"]}"#,
        r#"{"id":"\ud800"}"#,
        r#"{"\ud800":1,"id":"a"}"#,
        r#"{"id":"a","id":"a"}"#,
        r#"{"id":"a","\u0069d":"a"}"#,
        r#"{"id":"a","id":"b"}"#,
        r#"{"id":"a","status":"queued","status":"queued"}"#,
        r#"{"id":"a","status":null,"status":"queued"}"#,
        r#"{"clip":{"id":"a"}}"#,
        r#"{"a":{"id":"a"}}"#,
        r#"[{"id":"a"}]"#,
        "{}",
        "[]",
        "null",
        "true",
        "1",
        r#""a""#,
    ];
    each(23, single, |body| assert_eq!(split_text(Form::Single, &["a"], body), SplitBody::Unsplit, "{body}"));
    let multi = vec![
        // a list that is not both jobs, each once
        "[]",
        r#"[{"id":"a"}]"#,
        r#"[{"id":"a"},{"id":"a"}]"#,
        r#"[{"id":"a"},{"id":"b"},{"id":"b"}]"#,
        r#"[{"id":"a"},{"id":"b"},{"id":"c"}]"#,
        r#"[{"id":"a"},{"id":"c"}]"#,
        r#"[{"id":"a"},{"id":"b"},null]"#,
        // an item that is not a job
        r#"[{"id":"a"},"b"]"#,
        r#"[{"id":"a"},null]"#,
        r#"[{"id":"a"},[{"id":"b"}]]"#,
        r#"[{"id":"a"},{"id":98}]"#,
        r#"[{"id":"a"},{}]"#,
        r#"[{"id":"a","status":"queued","status":"error"},{"id":"b"}]"#,
        r#"[{"id":"a","id":"b"},{"id":"b"}]"#,
        // an object with more than the list, or without the list
        r#"{"clips":[{"id":"a"},{"id":"b"}],"total":2}"#,
        r#"{"clips":[{"id":"a"},{"id":"b"}],"clips":[{"id":"a"},{"id":"b"}]}"#,
        r#"{"a":[{"id":"a"}],"b":[{"id":"b"}]}"#,
        r#"{"clips":[{"id":"a"},{"id":"b"},{"id":"c"}]}"#,
        r#"{"clips":[]}"#,
        r#"{"clips":null}"#,
        r#"{"clips":{"a":{"id":"a"},"b":{"id":"b"}}}"#,
        r#"{"data":{"clips":[{"id":"a"},{"id":"b"}]}}"#,
        r#"{"clips":[[{"id":"a"},{"id":"b"}]]}"#,
        // a map with other ids
        r#"{"a":{"id":"a"}}"#,
        r#"{"a":{"id":"a"},"a":{"id":"a"}}"#,
        r#"{"a":{"id":"a"},"\u0061":{"id":"a"}}"#,
        r#"{"a":{"id":"a"},"b":{"id":"a"}}"#,
        r#"{"a":{"id":"b"},"b":{"id":"a"}}"#,
        r#"{"a":{"id":"a"},"b":{"id":null}}"#,
        r#"{"a":{"id":"a"},"b":"queued"}"#,
        r#"{"a":{"id":"a"},"b":{"id":"b"},"c":{"id":"c"}}"#,
        r#"{"a":{"id":"a"},"c":{"id":"c"}}"#,
        // something else
        r#"{"error":{"message":"no"}}"#,
        r#"{"id":"a"}"#,
        "{}",
        "null",
        "0",
        r#""[]""#,
    ];
    each(38, multi, |body| {
        assert_eq!(split_text(Form::Multi, &["a", "b"], body), SplitBody::Unsplit, "{body}")
    });
}

#[test]
fn a_body_that_is_not_json_is_invalid() {
    let cases: Vec<&[u8]> = vec![
        b"",
        b" \r\n",
        b"<!doctype html><title>502</title>",
        b"upstream error",
        b"{",
        br#"{"id":"a""#,
        br#"{"id":"a","status":"queued""#,
        br#"{"id":"a"}}"#,
        br#"{"id":"a"}{"id":"a"}"#,
        br#"{"id":"a"} x"#,
        br#"{"id":"a",}"#,
        br#"{id:"a"}"#,
        br#"{'id':'a'}"#,
        br#"{"id":"a","x":01}"#,
        br#"{"id":"a","x":NaN}"#,
        br#"{"id":"a","x":"\q"}"#,
        b"{\"id\":\"a\",\"x\":\"\n\"}",
        b"{\"id\":\"a\",\"x\":\"\xff\"}",
        b"{\"id\":\"a\",\"x\":\"\xed\xa0\x80\"}",
        b"{\"id\":\"a\"}\0",
        b"[",
        br#"[{"id":"a"}"#,
        br#"[{"id":"a"},"#,
        br#"[{"id":"a"},]"#,
        br#"[{"id":"a"}]]"#,
        br#"[{"id":"a","x":[}]"#,
        br#"{"clips":[{"id":"a"}]"#,
        br#"{"clips":[{"id":"a"}}"#,
        br#"{"clips":[{"id":"a"}]},"#,
        br#"{"a":{"id":"a"}"#,
    ];
    each(30, cases, |body| {
        for form in [Form::Single, Form::Multi] {
            let result = split(&Route::suno(), form, &set(&["a"]), 200, &Bytes::copy_from_slice(body));
            assert_eq!(result, SplitBody::Invalid, "{form} {}", String::from_utf8_lossy(body));
        }
    });
}

/// P8.
#[test]
fn a_byte_order_mark_is_skipped_for_parsing_and_stays_in_the_bytes_of_a_single_job() {
    let body = Bytes::from_static(b"\xef\xbb\xbf{\"id\":\"a\",\"status\":\"complete\"}");
    let SplitBody::Jobs { jobs, .. } = split(&Route::suno(), Form::Single, &set(&["a"]), 200, &body) else {
        panic!("not split")
    };
    assert_eq!(jobs[0].body, body);
    assert!(jobs[0].rung.is_some());
    let list = Bytes::from_static(b"\xef\xbb\xbf[{\"id\":\"a\"},{\"id\":\"b\"}]");
    let SplitBody::Jobs { jobs, .. } = split(&Route::suno(), Form::Multi, &set(&["a", "b"]), 200, &list)
    else {
        panic!("not split")
    };
    assert_eq!(jobs[1].body, &b"{\"id\":\"b\"}"[..]);
    let twice = Bytes::from_static(b"\xef\xbb\xbf\xef\xbb\xbf{\"id\":\"a\"}");
    assert_eq!(split(&Route::suno(), Form::Single, &set(&["a"]), 200, &twice), SplitBody::Invalid);
}

#[test]
fn a_body_with_one_job_is_never_split_for_several() {
    let body = r#"{"id":"a"}"#;
    assert_eq!(split_text(Form::Single, &["a", "b"], body), SplitBody::Unsplit);
    assert_eq!(split_text(Form::Single, &[], body), SplitBody::Unsplit);
    assert_eq!(split_text(Form::Multi, &[], "[]"), SplitBody::Unsplit);
    assert_eq!(split_text(Form::Multi, &[], "{}"), SplitBody::Unsplit);
}

#[test]
fn an_id_with_escapes_is_compared_by_its_decoded_value() {
    let odd = "\"\\/\u{8}\u{0}é😀";
    let text = serde_json::to_string(odd).unwrap();
    let escaped = r#""\u0022\u005C\u002f\b\u0000\u00E9\uD83D\uDE00""#;
    for spelled in [text.as_str(), escaped] {
        let job = format!(r#"{{"id":{spelled}}}"#);
        assert_eq!(split_text(Form::Single, &[odd], &job), jobs(None, &[(odd, "", &job)]));
        let map = format!("{{{spelled}:{job}}}");
        assert_eq!(split_text(Form::Multi, &[odd], &map), jobs(Some(ListShape::Map), &[(odd, "", &job)]));
    }
}

#[test]
fn a_job_is_a_slice_of_the_body_and_not_a_copy() {
    let body = Bytes::from_static(br#"{"clips":[{"id":"b"},{"id":"a"}]}"#);
    let all = body.as_ptr_range();
    let SplitBody::Jobs { jobs, .. } = split(&Route::suno(), Form::Multi, &set(&["a", "b"]), 200, &body)
    else {
        panic!("not split")
    };
    assert_eq!(jobs.len(), 2);
    for job in jobs {
        let part = job.body.as_ptr_range();
        assert!(all.start < part.start && part.end < all.end);
    }
}

#[test]
fn nesting_of_any_depth_is_skipped() {
    let depth = 100_000;
    let (open, close) = ("[".repeat(depth), "]".repeat(depth));
    let (open_maps, close_maps) = (r#"{"x":"#.repeat(depth), "}".repeat(depth));
    let job = format!(r#"{{"x":{open}{open_maps}0{close_maps}{close},"id":"a"}}"#);
    assert_eq!(split_text(Form::Single, &["a"], &job), jobs(None, &[("a", "", &job)]));
    for (body, shape) in [
        (format!("[{job}]"), ListShape::Array),
        (format!(r#"{{"clips":[{job}]}}"#), wrapped("clips")),
        (format!(r#"{{"a":{job}}}"#), ListShape::Map),
    ] {
        assert_eq!(split_text(Form::Multi, &["a"], &body), jobs(Some(shape), &[("a", "", &job)]));
    }
    let cases = vec![
        (format!("{open}{close}"), SplitBody::Unsplit),
        (format!("{open_maps}0{close_maps}"), SplitBody::Unsplit),
        (format!(r#"{{"id":{open}{close}}}"#), SplitBody::Unsplit),
        (format!(r#"[{{"id":{open}{close}}}]"#), SplitBody::Unsplit),
        (open.clone(), SplitBody::Invalid),
        (open_maps.clone(), SplitBody::Invalid),
        (format!(r#"{{"id":"a","status":{open}"#), SplitBody::Invalid),
    ];
    each(7, cases, |(body, expected)| {
        for form in [Form::Single, Form::Multi] {
            assert_eq!(split_text(form, &["a"], &body), expected, "{form} {}", &body[..20]);
        }
    });
    let status = format!(r#"{{"id":"a","status":{open}{close}}}"#);
    assert_eq!(split_text(Form::Single, &["a"], &status), jobs(None, &[("a", "", &status)]));
}

#[test]
fn join_keeps_the_clients_order_and_the_upstreams_shape() {
    let [a, b] = [id("a\""), id("b")];
    let [a_body, b_body] = [Bytes::from_static(b"{ \"id\":\"a\\\"\" }"), Bytes::from_static(b"{}")];
    let cases = vec![
        (ListShape::Array, r#"[{},{ "id":"a\"" }]"#, "[]"),
        (wrapped("clips"), r#"{"clips":[{},{ "id":"a\"" }]}"#, r#"{"clips":[]}"#),
        (wrapped("a \"list\"\n"), r#"{"a \"list\"\n":[{},{ "id":"a\"" }]}"#, r#"{"a \"list\"\n":[]}"#),
        (ListShape::Map, r#"{"b":{},"a\"":{ "id":"a\"" }}"#, "{}"),
    ];
    assert_eq!(ListShape::default(), ListShape::Array);
    each(4, cases, |(shape, both, none)| {
        assert_eq!(join(&shape, [(&b, &b_body), (&a, &a_body)]), both);
        assert_eq!(join(&shape, []), none);
    });
}

#[test]
fn joined_jobs_are_split_again_in_every_shape() {
    let route = Route::suno();
    let mut checked = 0;
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut any_text = || (0..random.usize(1..=20)).map(|_| random.char(..)).collect::<String>();
        let name = any_text();
        let requested = JobSet::new((0..6).map(|_| id(&any_text())));
        let job = |id: &JobId| {
            let text = serde_json::to_string(id.as_str()).unwrap();
            Bytes::from(format!("{{ \"status\":\"queued\",\"id\" :{text} }}"))
        };
        let bodies: Vec<(JobId, Bytes)> = requested.iter().map(|id| (id.clone(), job(id))).collect();
        for shape in [ListShape::Array, ListShape::Wrapped(name), ListShape::Map] {
            let mut order: Vec<_> = bodies.iter().map(|(id, body)| (id, body)).collect();
            fastrand::Rng::with_seed(seed).shuffle(&mut order);
            let body = join(&shape, order);
            let SplitBody::Jobs { jobs, shape: split_shape } =
                split(&route, Form::Multi, &requested, 200, &body)
            else {
                panic!("seed {seed}: {body:?}")
            };
            assert_eq!(split_shape.as_ref(), Some(&shape), "seed {seed}");
            let split_bodies: Vec<_> = jobs.into_iter().map(|job| (job.id, job.body)).collect();
            assert_eq!(split_bodies, bodies, "seed {seed}");
            checked += 1;
        }
    }
    assert_eq!(checked, 1_500);
}

#[test]
fn a_damaged_body_is_invalid_exactly_when_it_is_not_json() {
    let route = Route::suno();
    let bodies = [
        r#"{"id":"a","status":"queued"}"#,
        r#"[{"id":"a","status":"queued"},{"id":"b","x":[1,{"y":"\u0061"}]}]"#,
        r#"{"clips":[{"id":"a","status":"queued"},{"id":"b","x":-1.5e3}]}"#,
        r#"{"a":{"id":"a","status":"queued"},"b":{"title":"é"}}"#,
    ];
    let (mut invalid, mut split_jobs) = (0, 0);
    for seed in 0..5_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut body = bodies[random.usize(..bodies.len())].as_bytes().to_vec();
        for _ in 0..random.usize(1..=2) {
            let at = random.usize(..body.len());
            match random.u8(..4) {
                0 => body[at] = random.u8(..),
                1 => body[at] = b"[]{}:,\"\\ 0ab"[random.usize(..12)],
                2 => drop(body.remove(at)),
                _ => body.truncate(at.max(1)),
            }
        }
        let body = Bytes::from(body);
        let is_json =
            str::from_utf8(&body).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
        for (form, requested) in [(Form::Single, set(&["a"])), (Form::Multi, set(&["a", "b"]))] {
            let result = split(&route, form, &requested, 200, &body);
            assert_eq!(result == SplitBody::Invalid, !is_json, "seed {seed}: {body:?}");
            invalid += usize::from(!is_json);
            if let SplitBody::Jobs { jobs, .. } = result {
                assert!(jobs.iter().map(|job| &job.id).eq(&requested), "seed {seed}");
                split_jobs += 1;
            }
        }
    }
    assert!(
        invalid > 1_000 && split_jobs > 100,
        "{invalid} invalid, {split_jobs} split: the damage tests too little"
    );
}

#[test]
fn a_list_under_a_name_that_is_too_long_to_store_is_unsplit() {
    let split_list = |length: usize| {
        let name = "n".repeat(length);
        (split_text(Form::Multi, &["a"], &format!(r#"{{"{name}":[{{"id":"a"}}]}}"#)), wrapped(&name))
    };
    let (longest, shape) = split_list(MAX_NAME_BYTES);
    assert_eq!(longest, jobs(Some(shape), &[("a", "", r#"{"id":"a"}"#)]));
    assert_eq!(split_list(MAX_NAME_BYTES + 1).0, SplitBody::Unsplit);
}

#[test]
fn the_status_word_of_a_body_is_read_also_if_the_ladder_does_not_have_it() {
    let word = |body: &'static str| status_text(&Route::suno(), 200, &Bytes::from_static(body.as_bytes()));
    assert_eq!(word(r#"{"id":"a","status":"paused"}"#).as_deref(), Some("paused"));
    assert_eq!(word(r#"{"id":"a","status":7}"#).as_deref(), Some("7"));
    assert_eq!(word(r#"{"id":"a"}"#).as_deref(), Some(""));
    assert_eq!(word(r#"{"id":"a","status":{}}"#), None);
    let by_code = Route { status: StatusSource::HttpStatus, ..Route::suno() };
    assert_eq!(status_text(&by_code, 207, &Bytes::new()).as_deref(), Some("207"));
}
