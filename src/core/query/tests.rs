use super::identity::MAX_NAMED;
use super::*;
use crate::core::route::{ListEndpoint, PathTemplate};

const SINGLE: &str = "/v2/generate/audio/suno-ai/clip";
const MULTI: &str = "/v2/generate/audio/suno-ai/clips";
const MAX_JOBS: usize = 6;

fn parse_target(target: &str) -> Query {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    parse(&Route::suno().into(), path, query, MAX_JOBS)
}

fn id(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

fn goal(word: &str) -> Goal {
    Goal::Rung(Route::suno().ladder.rung(word).unwrap())
}

fn wait(form: Form, ids: &[&str], goal: Goal) -> Query {
    Query::Wait(WaitQuery {
        route: RouteIndex::default(),
        hold: None,
        form,
        asked: ids.iter().map(|text| id(text)).collect(),
        goal,
    })
}

/// Checks each case of a table, and the number of cases.
fn each<T>(count: usize, cases: Vec<T>, check: impl Fn(T)) {
    assert_eq!(cases.len(), count, "cases were added or lost");
    cases.into_iter().for_each(check);
}

#[test]
fn one_job_is_parsed_in_every_spelling() {
    let cases = vec![
        ("clip_id=a", "a", Goal::Now),
        ("clip_id=a&status=streaming", "a", goal("streaming")),
        ("status=streaming&clip_id=a", "a", goal("streaming")),
        ("clip_id=a&status=completed", "a", goal("completed")),
        ("clip_id=a&status=complete", "a", goal("completed")),
        ("&&clip_id=a&&status=queued&", "a", goal("queued")),
        ("clip%5Fid=a&st%61tus=%71ueued", "a", goal("queued")),
        ("clip_id=%61%2fb", "a/b", Goal::Now),
        ("clip_id=a%2Bb", "a+b", Goal::Now),
        ("clip_id=a%20b", "a b", Goal::Now),
        ("clip_id=a%26b%3Dc%3Bd%2Ce", "a&b=c;d,e", Goal::Now),
        ("clip_id=a=b", "a=b", Goal::Now),
        ("clip_id=a%2541", "a%41", Goal::Now),
        ("clip_id=%C3%A9", "é", Goal::Now),
        ("clip_id=é", "é", Goal::Now),
        ("clip_id=[]:@!$'()*?/-._~", "[]:@!$'()*?/-._~", Goal::Now),
        ("clip_id=%00", "\0", Goal::Now),
    ];
    each(17, cases, |(query, id, goal)| {
        assert_eq!(parse_target(&format!("{SINGLE}?{query}")), wait(Form::Single, &[id], goal), "{query}");
    });
}

#[test]
fn several_jobs_are_parsed_in_every_spelling_and_keep_the_clients_order() {
    let cases = vec![
        ("clip_ids[]=b", &["b"] as &[_], Goal::Now),
        ("clip_ids[]=b&clip_ids[]=a&status=streaming", &["b", "a"], goal("streaming")),
        ("clip_ids%5B%5D=b&clip_ids%5b%5d=a", &["b", "a"], Goal::Now),
        ("clip_ids[]=b&clip_ids%5B%5D=a", &["b", "a"], Goal::Now),
        ("clip_ids=b&clip_ids=a", &["b", "a"], Goal::Now),
        ("clip_ids=b", &["b"], Goal::Now),
        ("clip_ids[0]=b&clip_ids[1]=a", &["b", "a"], Goal::Now),
        ("clip_ids%5B0%5D=b&status=queued&clip_ids[7]=a", &["b", "a"], goal("queued")),
        ("clip_ids[9]=b&clip_ids[10]=a&clip_ids[4294967295]=c", &["b", "a", "c"], Goal::Now),
        (
            "clip_ids[]=f&clip_ids[]=e&clip_ids[]=d&clip_ids[]=c&clip_ids[]=b&clip_ids[]=a",
            &["f", "e", "d", "c", "b", "a"],
            Goal::Now,
        ),
        ("clip_ids[]=a&clip_ids[]=A", &["a", "A"], Goal::Now),
    ];
    each(11, cases, |(query, ids, goal)| {
        assert_eq!(parse_target(&format!("{MULTI}?{query}")), wait(Form::Multi, ids, goal), "{query}");
    });
}

#[test]
fn a_request_with_an_unknown_parameter_or_spelling_is_passed_through() {
    let cases = vec![
        // another path
        "/v2/generate/audio/suno-ai/lyric?clip_id=a".to_owned(),
        "/v2/generate/audio/suno-ai/clip/?clip_id=a".to_owned(),
        "/v2/generate/audio/suno-ai/cl%69p?clip_id=a".to_owned(),
        "/?clip_id=".to_owned(),
        // an unknown parameter
        format!("{SINGLE}?clip_id=a&verbose=1"),
        format!("{SINGLE}?verbose"),
        format!("{SINGLE}?=a"),
        format!("{SINGLE}?clip_id=a&=b"),
        format!("{SINGLE}?clip_ids[]=a"),
        format!("{SINGLE}?clip_id[]=a"),
        format!("{SINGLE}?clip_id[0]=a"),
        format!("{SINGLE}?Clip_id=a"),
        format!("{SINGLE}?clip_id=a&Status=queued"),
        format!("{SINGLE}?clip_id=a&status[]=queued"),
        format!("{SINGLE}?clip_id+=a"),
        format!("{SINGLE}?clip_id%FF=a"),
        format!("{SINGLE}?clip_id;status=a"),
        format!("{MULTI}?clip_id=a"),
        format!("{MULTI}?clip_ids[]=a&{}=1", "x".repeat(1_000)),
        // a status that the ladder does not have, and an empty or repeated one
        format!("{SINGLE}?clip_id=a&status=Completed"),
        format!("{SINGLE}?clip_id=a&status=done"),
        format!("{SINGLE}?clip_id=a&status="),
        format!("{SINGLE}?clip_id=a&status"),
        format!("{SINGLE}?clip_id=a&status=queued+"),
        format!("{SINGLE}?clip_id=a&status=%FF"),
        format!("{SINGLE}?clip_id=a&status={}", "x".repeat(1_000)),
        format!("{SINGLE}?clip_id=a&status=queued&status=queued"),
        format!("{SINGLE}?status=error&clip_id=a&status=done"),
        format!("{SINGLE}?status=error&clip_id=a&status=queued"),
        format!("{SINGLE}?status=%zz&clip_id=a&status=queued"),
        // ids that parsers disagree on
        format!("{SINGLE}?clip_id=a&clip_id=b"),
        format!("{SINGLE}?clip_id=a&clip_id=a"),
        format!("{SINGLE}?clip_id=&clip_id=a"),
        format!("{SINGLE}?clip_id=a+b"),
        format!("{SINGLE}?clip_id=a;b"),
        format!("{SINGLE}?clip_id=a;status=queued"),
        format!("{MULTI}?clip_ids=a,b"),
        format!("{MULTI}?clip_ids[]=a&clip_ids[]=b&clip_ids[]=a"),
        format!("{MULTI}?clip_ids[]=a&clip_ids[]=%61"),
        format!("{MULTI}?clip_ids[]=a&clip_ids=b"),
        format!("{MULTI}?clip_ids=a&clip_ids[]=b"),
        format!("{MULTI}?clip_ids[]=a&clip_ids[0]=b"),
        format!("{MULTI}?clip_ids[0]=a&clip_ids[]=b"),
        format!("{MULTI}?clip_ids[1]=a&clip_ids[0]=b"),
        format!("{MULTI}?clip_ids[0]=a&clip_ids[0]=b"),
        format!("{MULTI}?clip_ids[00]=a"),
        format!("{MULTI}?clip_ids[01]=a"),
        format!("{MULTI}?clip_ids[%2B1]=a"),
        format!("{MULTI}?clip_ids[-1]=a"),
        format!("{MULTI}?clip_ids[4294967296]=a"),
        format!("{MULTI}?clip_ids[a]=a"),
        format!("{MULTI}?clip_ids[0][]=a"),
        format!("{MULTI}?clip_ids[][]=a"),
        format!("{MULTI}?clip_ids[=a"),
        format!("{MULTI}?clip_ids]=a"),
        format!("{MULTI}?clip_ids.0=a"),
        format!("{MULTI}?clip_idsx=a"),
        format!("{MULTI}?CLIP_IDS[]=a"),
        format!("{MULTI}?clip_ids%255B%255D=a"),
    ];
    each(59, cases, |target| assert_eq!(parse_target(&target), Query::Other, "{target}"));
}

#[test]
fn an_invalid_wait_gets_a_reason_and_a_sentence_with_the_fix() {
    let one = |query: &str| format!("{SINGLE}?{query}");
    let many = |query: &str| format!("{MULTI}?{query}");
    let cases = vec![
        (SINGLE.to_owned(), "no-id", "`clip_id` is missing: name a job, as in `clip_id=ID`"),
        (one(""), "no-id", "`clip_id` is missing: name a job, as in `clip_id=ID`"),
        (one("&"), "no-id", "`clip_id` is missing: name a job, as in `clip_id=ID`"),
        (one("status=queued"), "no-id", "`clip_id` is missing: name a job, as in `clip_id=ID`"),
        (MULTI.to_owned(), "no-id", "`clip_ids[]` is missing: name a job, as in `clip_ids[]=ID`"),
        (one("clip_id="), "empty-id", "`clip_id` is empty: give it the id of a job"),
        (one("clip_id"), "empty-id", "`clip_id` is empty: give it the id of a job"),
        (many("clip_ids[]=a&clip_ids[]="), "empty-id", "`clip_ids[]` is empty: give it the id of a job"),
        (
            one(&format!("clip_id={}", "x".repeat(129))),
            "long-id",
            "`clip_id` is longer than 128 bytes: give it the id of a job",
        ),
        (
            one(&format!("clip_id={}", "%C3%A9".repeat(65))),
            "long-id",
            "`clip_id` is longer than 128 bytes: give it the id of a job",
        ),
        (
            one("clip_id=%FF"),
            "id-not-utf8",
            "`clip_id` is not UTF-8 once its percent-escapes are read: give it the id of a job",
        ),
        (
            many("clip_ids[]=a&clip_ids[]=%C3"),
            "id-not-utf8",
            "`clip_ids[]` is not UTF-8 once its percent-escapes are read: give it the id of a job",
        ),
        (
            many(
                "clip_ids[]=1&clip_ids[]=2&clip_ids[]=3&clip_ids[]=4&clip_ids[]=5&clip_ids[]=6&clip_ids[]=7",
            ),
            "too-many-ids",
            "`clip_ids[]` is given more than 6 times: ask for the other jobs in another request",
        ),
        (
            one("clip_id=a&status=error"),
            "status-not-askable",
            "`status` cannot be `error`: ask for `submitted` or `queued` or `streaming` or `completed`",
        ),
        (
            many("status=err%6Fr&clip_ids[]=a"),
            "status-not-askable",
            "`status` cannot be `error`: ask for `submitted` or `queued` or `streaming` or `completed`",
        ),
        (
            one("clip_id=100%"),
            "broken-escape",
            "`clip_id` has a `%` without two hex digits after it: write a `%` that stands for itself as `%25`",
        ),
        (
            one("clip_id=%%41"),
            "broken-escape",
            "`clip_id` has a `%` without two hex digits after it: write a `%` that stands for itself as `%25`",
        ),
        (
            one("clip_id=%4é"),
            "broken-escape",
            "`clip_id` has a `%` without two hex digits after it: write a `%` that stands for itself as `%25`",
        ),
        (
            one("clip_id=a&status=%zz"),
            "broken-escape",
            "`status` has a `%` without two hex digits after it: write a `%` that stands for itself as `%25`",
        ),
        (
            many("clip_ids%5B%5=a"),
            "broken-escape",
            "a parameter's name has a `%` without two hex digits after it: write its letters as they are",
        ),
    ];
    each(20, cases, |(target, reason, sentence)| match parse_target(&target) {
        Query::Bad(bad) => {
            assert_eq!((bad.reason(), bad.to_string().as_str()), (reason, sentence), "{target}");
        }
        query => panic!("{target} is {query:?}"),
    });
}

#[test]
fn an_unknown_parameter_outweighs_an_invalid_one() {
    let cases = vec![
        format!("{SINGLE}?verbose=1"),
        format!("{SINGLE}?clip_id=&verbose=1"),
        format!("{SINGLE}?status=error&verbose=1"),
        format!("{SINGLE}?clip_id=%zz&verbose=%zz"),
        format!("{SINGLE}?clip%zz=a&verbose=1"),
        format!("{SINGLE}?status=done"),
        format!("{MULTI}?clip_ids[]=a&clip_ids[]=a&status=error"),
        format!("{MULTI}?{}verbose=1", "clip_ids[]=a&".repeat(7)),
    ];
    each(8, cases, |target| assert_eq!(parse_target(&target), Query::Other, "{target}"));
}

#[test]
fn an_id_of_128_bytes_is_accepted_in_any_escaping() {
    let cases = vec![
        ("x".repeat(128), "x".repeat(128)),
        ("%78".repeat(128), "x".repeat(128)),
        ("%C3%A9".repeat(64), "é".repeat(64)),
    ];
    each(3, cases, |(spelled, id)| {
        let target = format!("{SINGLE}?clip_id={spelled}");
        assert_eq!(parse_target(&target), wait(Form::Single, &[&id], Goal::Now), "{target}");
    });
}

#[test]
fn a_huge_query_keeps_no_more_ids_than_a_request_may_have() {
    let ids: String = (0..100_000).map(|n| format!("clip_ids[]={n}&")).collect();
    assert!(
        matches!(parse_target(&format!("{MULTI}?{ids}")), Query::Bad(BadQuery::TooManyIds { limit: 6, .. })),
        "the query has too many ids"
    );
    let huge = "%41".repeat(1_000_000);
    assert!(matches!(parse_target(&format!("{SINGLE}?clip_id={huge}")), Query::Bad(BadQuery::LongId { .. })));
    assert_eq!(parse_target(&format!("{SINGLE}?{huge}=a")), Query::Other);
}

#[test]
fn the_jobs_of_a_wait_are_a_set() {
    let Query::Wait(wait) = parse_target(&format!("{MULTI}?clip_ids[]=b&clip_ids[]=a")) else {
        panic!("not parsed as a wait")
    };
    assert_eq!(wait.asked, [id("b"), id("a")]);
    assert_eq!(wait.jobs(), JobSet::new([id("a"), id("b")]));
}

#[test]
fn a_poll_uses_the_documented_spelling_and_characters_that_strict_servers_accept() {
    let route = Route::suno();
    let set = |ids: &[&str]| JobSet::new(ids.iter().map(|text| id(text)));
    let cases = vec![
        (Form::Single, set(&["a-1"]), Goal::Now, format!("{SINGLE}?clip_id=a-1")),
        (Form::Single, set(&["a"]), goal("completed"), format!("{SINGLE}?clip_id=a&status=completed")),
        (Form::Multi, set(&["a"]), Goal::Now, format!("{MULTI}?clip_ids%5B%5D=a")),
        (
            Form::Multi,
            set(&["b", "a"]),
            goal("streaming"),
            format!("{MULTI}?clip_ids%5B%5D=a&clip_ids%5B%5D=b&status=streaming"),
        ),
        (
            Form::Single,
            set(&["a+b &=%é#?"]),
            Goal::Now,
            format!("{SINGLE}?clip_id=a%2Bb%20%26%3D%25%C3%A9%23%3F"),
        ),
    ];
    each(5, cases, |(form, jobs, goal, target)| {
        assert_eq!(build_target(&route, form, &jobs, goal), target);
        let is_accepted = |b: u8| b.is_ascii_alphanumeric() || b"-._~%&=?/".contains(&b);
        assert!(target.bytes().all(is_accepted), "{target}");
    });
}

#[test]
fn the_target_of_a_poll_parses_to_the_same_wait_for_every_form_and_goal() {
    let route = Route::suno();
    let goals: Vec<Goal> = [Goal::Now]
        .into_iter()
        .chain(route.ladder.rungs().filter(|&rung| route.ladder.is_askable(rung)).map(Goal::Rung))
        .collect();
    assert_eq!(goals.len(), 5);
    let mut checked = 0;
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut any_id = || {
            let length = random.usize(1..=32);
            let any = |_| if random.bool() { random.char(..) } else { random.char('\0'..='\x7f') };
            id(&(0..length).map(any).collect::<String>())
        };
        let single = JobSet::new([any_id()]);
        let multi = JobSet::new((0..MAX_JOBS).map(|_| any_id()));
        for (form, jobs) in [(Form::Single, &single), (Form::Multi, &multi)] {
            for &goal in &goals {
                let target = build_target(&route, form, jobs, goal);
                let Query::Wait(parsed) = parse_target(&target) else { panic!("seed {seed}: {target}") };
                assert_eq!(
                    (parsed.form, parsed.jobs(), parsed.goal),
                    (form, jobs.clone(), goal),
                    "seed {seed}"
                );
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 500 * 2 * goals.len());
}

#[test]
fn named_finds_the_jobs_of_any_target_on_the_two_paths() {
    let cases = vec![
        (SINGLE, "clip_id=a&status=completed", vec!["a"]),
        (SINGLE, "x=1&clip%5Fid=%61&clip_id=b&clip_id=", vec!["a", "b"]),
        (SINGLE, "clip_id=a,b;c", vec!["a,b;c", "a", "b", "c"]),
        (SINGLE, "clip_ids=a&id=b&status=c", vec![]),
        (MULTI, "clip_ids[]=a&clip_ids=b&clip_ids[3]=c&page=2", vec!["a", "b", "c"]),
        (MULTI, "clip_ids=%zz&clip_ids=%ff&clip_ids=b", vec!["b"]),
        ("/v1/models", "clip_id=a", vec![]),
    ];
    each(7, cases, |(path, query, ids)| {
        let ids: Vec<_> = ids.into_iter().map(id).collect();
        assert_eq!(named(&Route::suno().into(), path, Some(query)), ids, "{query}");
    });
    let endless = "clip_ids=a&".repeat(100_000);
    assert_eq!(named(&Route::suno().into(), MULTI, Some(&endless)).len(), MAX_NAMED);
    assert!(named(&Route::suno().into(), MULTI, None).is_empty());
}

#[test]
fn take_removes_a_parameter_that_occurs_once_and_returns_its_decoded_value() {
    let rows = [
        ("a=1&id=x%3Ay&b=2", Some(("a=1&b=2", "x:y"))),
        ("id=x", Some(("", "x"))),
        ("id=x&a=1", Some(("a=1", "x"))),
        ("a=%ZZ&&b&%69d=", Some(("a=%ZZ&&b", ""))),
        ("id", Some(("", ""))),
        ("a=1", None),
        ("ID=x", None),
        ("id=x&id=x", None),
        ("id=%", None),
        ("id=%ff", None),
        ("", None),
    ];
    each(11, rows.to_vec(), |(query, taken)| {
        let expected = taken.map(|(rest, value)| (rest.to_owned(), value.to_owned()));
        assert_eq!(take(query, "id"), expected, "{query}");
    });
}

#[test]
fn an_action_names_its_job_also_where_the_id_is_a_parameter_and_the_path_has_variables() {
    let template = |text| PathTemplate::parse(text).unwrap();
    let mut route = Route { list: None, wait_param: None, ..Route::never_holding() };
    (route.path, route.id_param) = (template("/{owner}/tasks"), Some("id".to_owned()));
    route.actions = vec![template("/{owner}/tasks/{id}/cancel"), template("/stop/{id}/{owner}")];
    let routes: Routes = route.into();
    let job = JobId::with_rest(RouteIndex(0), "a", "acme").unwrap();
    for (path, query) in [
        ("/acme/tasks", Some("id=a")),
        ("/acme/tasks", Some("force=1&id=a")),
        ("/acme/tasks/a/cancel", None),
        ("/stop/a/acme", None),
    ] {
        assert_eq!(acted_on(&routes, path, query), std::slice::from_ref(&job), "{path}");
    }
    for path in ["/acme/tasks", "/acme/tasks/a", "/stop/a"] {
        assert_eq!(acted_on(&routes, path, None), [], "{path}");
    }
}

fn plain_routes(list: Option<ListForm>) -> Routes {
    let path = PathTemplate::parse("/{owner}/jobs/{id}").unwrap();
    let actions = vec![PathTemplate::parse("/stop/{owner}/{id}").unwrap()];
    let list = list.map(|form| ListEndpoint { path: "/many".into(), param: "ids".into(), form, max: 6 });
    let params = vec!["logs".to_owned()];
    Route { path, id_param: None, actions, list, params, wait_param: None, ..Route::never_holding() }.into()
}

#[test]
fn an_action_names_its_job_also_where_only_lenient_servers_read_its_path_so() {
    let routes = plain_routes(None);
    let job = |id| JobId::with_rest(RouteIndex(0), id, "acme").unwrap();
    for path in [
        "//acme/jobs/a",
        "/acme//jobs/a",
        "/acme/jobs/a/",
        "/acme/jobs/a;x",
        "/acme;v=1/jobs/a/cancel",
        "/acme/jobs/a%2Fcancel",
        "/acme/jobs/a%2fcancel",
        "/acme/jobs/a%5Ccancel",
        "/acme/./jobs/a",
        "/acme/jobs/b/../a",
        "/acme/%6Aobs/a",
        "/stop//acme/a",
        "/stop/acme/a;force",
        "/stop/acme%2Fa",
    ] {
        assert!(acted_on(&routes, path, None).contains(&job("a")), "{path}");
    }
    for verb in ["/acme/jobs/a:cancel", "/acme/jobs/a%3Acancel"] {
        let jobs = acted_on(&routes, verb, None);
        assert_eq!(jobs, [job("a:cancel"), job("a")], "{verb}");
    }
    for path in ["/", "//", "/acme/jobs", "/acme/jobs/%2F", "/%zz/jobs/a"] {
        assert!(!acted_on(&routes, path, None).contains(&job("a")), "{path}");
    }
    assert_eq!(named(&routes, "//acme/jobs/a", None), [job("a")]);
}

#[test]
fn a_poll_spells_the_colons_of_an_id_as_its_client_did() {
    let routes = plain_routes(None);
    let parse = |target: &str| {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        parse(&routes, path, query, MAX_JOBS)
    };
    let base = JobId::with_rest(RouteIndex(0), "a:cancel", "acme").unwrap();
    for (target, polled) in [
        ("/acme/jobs/a:cancel", "/acme/jobs/a:cancel"),
        ("/acme/jobs/a%3acancel", "/acme/jobs/a%3Acancel"),
        ("/acme/jobs/a%3Acancel?logs=1", "/acme/jobs/a%3Acancel?logs=1"),
        ("/acme/jobs/a:cancel?logs=1", "/acme/jobs/a:cancel?logs=1"),
    ] {
        let Query::Wait(wait) = parse(target) else { panic!("{target} is not understood") };
        let route = routes.get(RouteIndex(0));
        assert_eq!(build_target(route, Form::Single, &wait.jobs(), Goal::Now), polled);
        let [job] = &wait.asked[..] else { panic!("{wait:?}") };
        assert_eq!((job.as_str(), job.without_params()), ("a:cancel", base.clone()), "{target}");
        let Query::Wait(again) = parse(polled) else { panic!("{polled} is not understood") };
        assert_eq!(again.asked, wait.asked);
    }
    for target in ["/acme/jobs/a:b%3Ac", "/ac%3Ame/jobs/a"] {
        assert_eq!(parse(target), Query::Other, "{target}");
    }
}

#[test]
fn in_a_list_with_commas_an_encoded_comma_is_one_too() {
    let routes = plain_routes(Some(ListForm::Comma));
    let job = |id| JobId::new(id).unwrap();
    for query in ["ids=a,b", "ids=a%2Cb", "ids=a%2cb"] {
        let Query::Wait(wait) = parse(&routes, "/many", Some(query), MAX_JOBS) else { panic!("{query}") };
        assert_eq!(wait.asked, [job("a"), job("b")], "{query}");
        assert!([job("a"), job("b")].iter().all(|id| named(&routes, "/many", Some(query)).contains(id)));
    }
    assert_eq!(parse(&routes, "/many", Some("ids=a%2C"), MAX_JOBS), Query::Other);
    let repeated = plain_routes(Some(ListForm::Repeat));
    let Query::Wait(wait) = parse(&repeated, "/many", Some("ids=a%2Cb"), MAX_JOBS) else { panic!() };
    assert_eq!(wait.asked, [job("a,b")]);
}
