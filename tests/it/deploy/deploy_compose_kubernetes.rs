//! Compose files, Kubernetes manifests and the chart: their own tools accept them, and their figures fit those of the
//! gateway.
//!
//! Needs dclint, kubernetes-validate, helm and promtool (`.ci/tools` installs them). The tests fail without them.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use clipgate::testing::config::{AuthMode, Config, Listen};
use serde_json::{Value, json};

use crate::deploy::alerts_and_dashboards::{deploy, read};
use crate::harness::command::{run, try_run};

const CHART: &str = "helm/clipgate";
/// Options from which `team.yaml` is generated.
const ALL_OF_IT: [&str; 2] = ["--set", "autoscaling.enabled=true,serviceMonitor.enabled=true"];
/// Time between the end of the drain and the kill, for the rest of a stop.
const SPARE: Duration = Duration::from_secs(4);

fn path(name: &str) -> String {
    deploy(name).to_str().unwrap().to_owned()
}

/// Returns the documents of a YAML file.
fn yaml(file: &str) -> Vec<Value> {
    let script = "import json, sys, yaml\nprint(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    serde_json::from_str(&run("python3", "python3", &["-c", script, file])).unwrap()
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("there is no {kind}"))
}

fn helm(args: &[&str]) -> String {
    run("helm", "helm", args)
}

/// Validates every document of a file, down to the last field name. Returns their number.
fn validate(file: &str) -> usize {
    let said = try_run("kubernetes-validate", "kubernetes-validate", &["-k", "1.33", "--strict", file]);
    let text = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
    assert!(said.status.success(), "{text}");
    let (passed, others): (Vec<_>, Vec<_>) =
        text.lines().partition(|line| line.contains(" passed for resource "));
    for line in others {
        assert!(line.contains("kind ServiceMonitor "), "only the operator's own kind is not known: {line}");
    }
    passed.len()
}

/// Returns the literal environment of a container. Mounted secrets are the files in `secrets`.
fn environment(container: &Value, secrets: &Path) -> Vec<(String, String)> {
    let text =
        |value: &Value| value.as_str().map(|text| text.replace("/run/secrets", secrets.to_str().unwrap()));
    match &container["env"] {
        Value::Array(list) => list
            .iter()
            .map(|one| (text(&one["name"]).unwrap(), text(&one["value"]).unwrap_or("s3cret".to_owned())))
            .collect(),
        _ => container["environment"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| (k.clone(), text(v).unwrap()))
            .collect(),
    }
}

/// Builds the configuration from this text and environment.
fn config(text: &str, mut env: Vec<(String, String)>) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    env.extend(["AIMLAPI_KEY", "CLIPGATE_ADMIN_TOKEN"].map(|name| (name.to_owned(), "s3cret".to_owned())));
    let config = Config::load(Some(file.path()), env).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.warnings(), [""; 0]);
    config
}

fn seconds(value: &Value) -> Duration {
    match value {
        Value::String(text) => Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap()),
        number => Duration::from_secs(number.as_u64().unwrap()),
    }
}

fn port(listen: Option<&Listen>) -> u64 {
    match listen {
        Some(Listen::Tcp(address)) => address.port().into(),
        other => panic!("{other:?} has no port"),
    }
}

#[test]
fn dclint_accepts_the_compose_files_and_their_stop_timeouts_exceed_the_drain() {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node/node_modules/.bin/dclint");
    let files = ["compose/sidecar.yml", "compose/team.yml"];
    for (file, secrets) in
        files.into_iter().zip([&["aimlapi_key"][..], &["admin_token", "tls_crt", "tls_key"]])
    {
        run(tool.to_str().unwrap(), "dclint", &["--max-warnings", "0", &path(file)]);
        let compose = yaml(&path(file)).remove(0);
        let gateway = &compose["services"]["clipgate"];
        let names: Vec<&str> =
            gateway["secrets"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(names, secrets);
        let mounted = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(mounted.path().join(name), "s3cret").unwrap();
        }
        let mount = gateway["volumes"][0].as_str().unwrap().strip_prefix("../").unwrap();
        let own = mount.strip_suffix(":/etc/clipgate/config.toml:ro").unwrap();
        let server = config(&read(own), environment(gateway, mounted.path())).server;
        assert!(seconds(&gateway["stop_grace_period"]) >= server.drain_timeout + SPARE, "{file}");
        assert_eq!(gateway["read_only"], true);
        assert!(
            deploy("compose")
                .join(gateway["build"]["context"].as_str().unwrap())
                .join("deploy/docker/Dockerfile")
                .exists()
        );
    }
}

#[test]
fn dclint_accepts_the_compose_file_of_two_vendors_and_each_has_its_own_process_and_port() {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node/node_modules/.bin/dclint");
    let file = "compose/two-vendors.yml";
    run(tool.to_str().unwrap(), "dclint", &["--max-warnings", "0", &path(file)]);
    let compose = yaml(&path(file)).remove(0);
    let vendors = [
        ("openai", "127.0.0.1:8082:8080", "https://api.openai.com/"),
        ("replicate", "127.0.0.1:8081:8080", "https://api.replicate.com/"),
    ];
    assert_eq!(compose["services"].as_object().unwrap().len(), vendors.len());
    for (name, port, base_url) in vendors {
        let gateway = &compose["services"][name];
        let mount = gateway["volumes"][0].as_str().unwrap().strip_prefix("./").unwrap();
        let own = format!("compose/{}", mount.strip_suffix(":/etc/clipgate/config.toml:ro").unwrap());
        let text = read(&own);
        let config = config(&text, Vec::new());
        assert_eq!(config.upstream.base_url.to_string(), base_url);
        assert!(matches!(config.auth.mode, AuthMode::Passthrough), "{own}");
        assert!(config.routes.iter().all(|route| route.name.starts_with(name)), "{own}");
        assert!(!config.routes.is_empty(), "{own}");
        assert_eq!(gateway["ports"], json!([port]));
        assert!(seconds(&gateway["stop_grace_period"]) >= config.server.drain_timeout + SPARE, "{own}");
        assert_eq!(gateway["read_only"], true);
    }
}

#[test]
fn the_chart_passes_routes_on_as_they_are() {
    let own = format!("config={}", path("compose/replicate.toml"));
    let made = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(&made, helm(&["template", "c", &path(CHART), "--set-file", &own])).unwrap();
    let documents = yaml(made.path().to_str().unwrap());
    let text = of_kind(&documents, "ConfigMap")["data"]["config.toml"].as_str().unwrap();
    assert_eq!(text.trim(), read("compose/replicate.toml").trim());
}

#[test]
fn the_chart_with_a_cluster_has_an_engine_and_no_affinity() {
    let options = ["template", "c", &path(CHART), "--set", "cluster.enabled=true,replicas=3"];
    let made = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(&made, helm(&options)).unwrap();
    let file = made.path().to_str().unwrap();
    let documents = yaml(file);
    assert_eq!(validate(file), documents.len());
    let gateway = documents.iter().find(|one| one["kind"] == "Deployment" && one["metadata"]["name"] == "c");
    let container = &gateway.unwrap()["spec"]["template"]["spec"]["containers"][0];
    let mut env = environment(container, Path::new("/"));
    env.retain(|(name, _)| name.starts_with("CLIPGATE__CLUSTER"));
    env.push(("CLIPGATE_CLUSTER_SECRET".to_owned(), "0123456789abcdef0123456789abcdef".to_owned()));
    let cluster = Config::load(None, env).unwrap().cluster.unwrap();
    assert_eq!((cluster.urls[0].to_string(), cluster.expected), ("redis://c-engine:6379".to_owned(), 3));
    let services: Vec<_> = documents.iter().filter(|one| one["kind"] == "Service").collect();
    assert!(services.iter().any(|one| one["metadata"]["name"] == "c-engine"));
    assert!(services.iter().all(|one| one["spec"]["sessionAffinity"].is_null()));
}

#[test]
fn dclint_accepts_the_compose_file_of_replicas_and_all_share_one_engine() {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node/node_modules/.bin/dclint");
    let file = "compose/replicas.yml";
    run(tool.to_str().unwrap(), "dclint", &["--max-warnings", "0", &path(file)]);
    run("haproxy", "haproxy", &["-c", "-f", &path("compose/replicas-haproxy.cfg")]);
    let gateway = &yaml(&path(file)).remove(0)["services"]["gateway"];
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let text =
        read("compose/replicas.toml").replace("/run/secrets/cluster_secret", secret.path().to_str().unwrap());
    let written = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&written, text).unwrap();
    let config = Config::load(Some(written.path()), Vec::new()).unwrap_or_else(|faults| panic!("{faults}"));
    let cluster = config.cluster.unwrap();
    assert_eq!(gateway["deploy"]["replicas"], cluster.expected);
    assert_eq!(cluster.urls[0].host, "engine");
    assert!(seconds(&gateway["stop_grace_period"]) >= config.server.drain_timeout + SPARE);
}

/// Returns the owner and the mode of a file.
fn owner_and_mode(path: &Path) -> (String, u32) {
    let file = path.metadata().unwrap();
    (format!("{}:{}", file.uid(), file.gid()), file.mode() & 0o7777)
}

fn is_root() -> bool {
    run("id", "coreutils", &["-u"]).trim() == "0"
}

/// Returns the user of the image, which applies unless compose sets one.
fn user_of_the_image() -> String {
    let dockerfile = read("docker/Dockerfile");
    dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).unwrap().to_owned()
}

#[test]
fn the_team_compose_file_generates_each_secret_for_the_user_of_one_container() {
    let script = path("compose/make-secrets");
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [dir, other] = dirs.each_ref().map(|dir| dir.path());
    if !is_root() {
        let output = try_run(&script, "coreutils", &[dir.to_str().unwrap()]);
        assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("root"));
        return;
    }
    run(&script, "openssl", &[dir.to_str().unwrap()]);
    run(&script, "openssl", &[other.to_str().unwrap()]);
    let compose = yaml(&path("compose/team.yml")).remove(0);
    let mut mounted = Vec::new();
    for (name, service) in compose["services"].as_object().unwrap() {
        let user = service["user"].as_str().map_or_else(user_of_the_image, str::to_owned);
        for secret in service["secrets"].as_array().unwrap() {
            let file = compose["secrets"][secret.as_str().unwrap()]["file"].as_str().unwrap();
            let file = file.strip_prefix("../../secrets/").unwrap();
            let mode = if file == "tls.crt" { 0o444 } else { 0o400 };
            assert_eq!(owner_and_mode(&dir.join(file)), (user.clone(), mode), "{name} {file}");
            mounted.push(file.to_owned());
        }
    }
    mounted.sort_unstable();
    let list = |dir: &Path| {
        let names =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names
    };
    assert_eq!(mounted, list(dir), "each is one container's");

    let content = |dir: &Path, name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(content(dir, "admin_token"), content(dir, "prometheus_token"));
    let before: Vec<_> = mounted.iter().map(|name| content(dir, name)).collect();
    for (name, text) in mounted.iter().zip(&before) {
        assert!(text.trim().len() >= 32 && *text != content(other, name), "{name}");
    }
    run(&script, "openssl", &[dir.to_str().unwrap()]);
    let after: Vec<_> = mounted.iter().map(|name| content(dir, name)).collect();
    assert_eq!(before, after, "what is there stays");

    let grafana = &compose["services"]["grafana"]["environment"];
    assert_eq!(grafana["GF_SECURITY_ADMIN_PASSWORD__FILE"], "/run/secrets/grafana_password");
    let prometheus = yaml(&path("compose/prometheus.yml")).remove(0);
    let token = &prometheus["scrape_configs"][0]["authorization"]["credentials_file"];
    assert_eq!(token, "/run/secrets/prometheus_token");
}

#[test]
fn only_the_gateway_can_read_the_key_of_the_sidecar() {
    let example = read("compose/sidecar.yml");
    let command = example.lines().find_map(|line| line.strip_prefix("#   printf ")).unwrap();
    let (dir, user) = (tempfile::tempdir().unwrap(), user_of_the_image());
    let (uid, gid) = user.split_once(':').unwrap();
    assert!(command.contains(&format!("sudo install -m 400 -o {uid} -g {gid} ")), "{command}");
    let owner = if is_root() { String::new() } else { "-o $(id -u) -g $(id -g)".to_owned() };
    let command = command.replace("sudo ", "").replace("/dev/stdin", &format!("{owner} /dev/stdin"));
    let line = format!("cd {} && AIMLAPI_KEY=s3cret && printf {command}", dir.path().display());
    run("sh", "dash", &["-c", &line]);
    let key = dir.path().join("aimlapi_key");
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "s3cret");
    let (owner, mode) = owner_and_mode(&key);
    assert_eq!(mode, 0o400);
    assert!(owner == user || !is_root(), "{owner}");
}

#[test]
fn the_team_compose_file_publishes_each_page_on_the_loopback_address_only() {
    let compose = yaml(&path("compose/team.yml")).remove(0);
    let config = config(&read("config/team.toml"), Vec::new());
    let (clients, admin) = (port(config.server.listen.first()), port(config.admin.listen.as_ref()));
    let gateway = &compose["services"]["clipgate"];
    let expected = [clients, admin].map(|port| format!("127.0.0.1:{port}:{port}"));
    assert_eq!(gateway["ports"], json!(expected));
    for service in compose["services"].as_object().unwrap().values() {
        let mut ports = service["ports"].as_array().unwrap().iter().map(|port| port.as_str().unwrap());
        assert!(ports.all(|port| port.starts_with("127.0.0.1:")), "{service}");
    }
}

#[test]
fn the_files_that_compose_mounts_exist_and_prometheus_accepts_them() {
    let compose = yaml(&path("compose/team.yml")).remove(0);
    let mut mounts = 0;
    for service in compose["services"].as_object().unwrap().values() {
        for mount in service["volumes"].as_array().unwrap() {
            let from = mount.as_str().unwrap().split(':').next().unwrap();
            assert!(!from.starts_with('.') || deploy("compose").join(from).is_file(), "there is no {from}");
            mounts += 1;
        }
    }
    assert_eq!(mounts, 7);
    run("promtool", "prometheus", &["check", "config", "--syntax-only", &path("compose/prometheus.yml")]);
    let prometheus = yaml(&path("compose/prometheus.yml")).remove(0);
    let job = &prometheus["scrape_configs"][0];
    assert!(
        read("alerts.yml").contains(&format!("job={}", job["job_name"])),
        "the alerts are about another job"
    );
    for file in ["compose/grafana/datasources.yml", "compose/grafana/dashboards.yml"] {
        assert_eq!(yaml(&path(file))[0]["apiVersion"], 1);
    }
}

#[test]
fn kubernetes_accepts_the_manifests_and_the_chart_generates_those_of_the_team() {
    assert_eq!(validate(&path("kubernetes/sidecar.yaml")), 3);
    assert_eq!(validate(&path("kubernetes/team.yaml")), 7);
    helm(&["lint", "--strict", "--quiet", &path(CHART)]);
    let made = helm(&[&["template", "clipgate", &path(CHART)][..], &ALL_OF_IT].concat());
    assert!(made == read("kubernetes/team.yaml"), "make manifests");

    let none = "tlsSecretName=,podDisruptionBudget.enabled=false,networkPolicy.enabled=false";
    let least = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(&least, helm(&["template", "other", &path(CHART), "--set", none])).unwrap();
    assert_eq!(validate(least.path().to_str().unwrap()), 4);
    let misspelled = try_run("helm", "helm", &["template", "x", &path(CHART), "--set", "replica=3"]);
    assert!(!misspelled.status.success(), "the chart accepts an unknown value");
}

/// Returns whether a value of the chart sets nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Null | Value::Number(_) => false,
    }
}

#[test]
fn each_option_of_the_chart_that_is_empty_by_default_arrives_in_its_manifest() {
    let values = path("helm/clipgate/ci/all-values.yaml");
    let set = yaml(&values).remove(0);
    let defaults = yaml(&path("helm/clipgate/values.yaml")).remove(0);
    for (name, default) in defaults.as_object().unwrap() {
        assert!(!is_empty(default) || !set[name].is_null(), "{values} has no {name}");
        for (inner, default) in default.as_object().into_iter().flatten() {
            let is_set = !set[name][inner].is_null();
            let has_default = !is_empty(default) || ["tag", "name"].contains(&inner.as_str());
            assert!(has_default || is_set, "{values} has no {name}.{inner}");
        }
    }
    helm(&["lint", "--strict", "--quiet", &path(CHART), "--values", &values]);
    let made = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(&made, helm(&["template", "c", &path(CHART), "--values", &values])).unwrap();
    let made = made.path().to_str().unwrap();
    assert_eq!(validate(made), 9);
    let documents = yaml(made);
    let template = &of_kind(&documents, "Deployment")["spec"]["template"];
    let (pod, container) = (&template["spec"], &template["spec"]["containers"][0]);
    for name in ["imagePullSecrets", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints"] {
        assert_eq!(pod[name], set[name], "{name}");
    }
    assert_eq!(pod["priorityClassName"], set["priorityClassName"]);
    assert_eq!(template["metadata"]["labels"]["example.com/team"], "audio");
    assert_eq!(template["metadata"]["annotations"]["example.com/scan"], "no");
    let account = of_kind(&documents, "ServiceAccount");
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(account["metadata"]["annotations"], set["serviceAccount"]["annotations"]);
    assert_eq!(account["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsUser"], 10001);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "the other defaults stay");
    assert_eq!(container["securityContext"]["seLinuxOptions"], set["securityContext"]["seLinuxOptions"]);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "the other defaults stay");
    for (list, added) in [
        (&container["env"], &set["extraEnv"]),
        (&container["volumeMounts"], &set["extraVolumeMounts"]),
        (&pod["volumes"], &set["extraVolumes"]),
    ] {
        assert!(list.as_array().unwrap().ends_with(added.as_array().unwrap()), "{list}");
    }

    let service = of_kind(&documents, "Service");
    assert_eq!(service["metadata"]["annotations"], set["service"]["annotations"]);
    let ingress = of_kind(&documents, "Ingress");
    assert_eq!(ingress["spec"]["ingressClassName"], "nginx");
    assert_eq!(ingress["spec"]["tls"], set["ingress"]["tls"]);
    let hosts = ingress["spec"]["rules"].as_array().unwrap().iter().map(|rule| &rule["host"]);
    assert!(hosts.eq(set["ingress"]["hosts"].as_array().unwrap()), "{ingress}");
    let backend = &ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"];
    assert_eq!((&backend["name"], &backend["port"]["name"]), (&set["fullnameOverride"], &json!("clients")));
    let annotations = &ingress["metadata"]["annotations"];
    assert_eq!(annotations["cert-manager.io/cluster-issuer"], "letsencrypt");
    assert_eq!(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"], "150", "the default stays");
    let monitor = of_kind(&documents, "ServiceMonitor");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
}

#[test]
fn the_network_policy_admits_the_upstream_a_trace_collector_and_further_rules() {
    let rules = |args: &[&str]| {
        let made = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        std::fs::write(&made, helm(&[&["template", "c", &path(CHART)][..], args].concat())).unwrap();
        of_kind(&yaml(made.path().to_str().unwrap()), "NetworkPolicy")["spec"]["egress"].clone()
    };
    let ports = |rule: &Value| -> Vec<u64> {
        rule["ports"].as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap()).collect()
    };
    let usual = rules(&[]);
    // 4318 is the port of OTLP over HTTP.
    assert_eq!((ports(&usual[0]), ports(&usual[1])), (vec![443, 4318], vec![53, 53]));
    assert_eq!(usual.as_array().unwrap().len(), 2);
    let more = rules(&["--values", &path("helm/clipgate/ci/all-values.yaml")]);
    // The engine of the replicas follows the upstream, and DNS follows that.
    assert_eq!((ports(&more[0]), ports(&more[1])), (vec![8443, 4318], vec![6379]));
    assert_eq!(more[3]["to"], json!([{ "ipBlock": { "cidr": "192.0.2.0/24" } }]));
}

#[test]
fn an_ingress_needs_a_host_and_connects_without_tls_where_the_gateway_has_none() {
    let args = ["template", "c", &path(CHART), "--set", "ingress.enabled=true"];
    assert!(!try_run("helm", "helm", &args).status.success(), "the chart accepts an ingress without hosts");
    for (more, protocol) in
        [("ingress.hosts={a.example}", "HTTPS"), ("ingress.hosts={a.example},tlsSecretName=", "HTTP")]
    {
        let made = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        std::fs::write(&made, helm(&[&args[..], &["--set", more]].concat())).unwrap();
        let documents = yaml(made.path().to_str().unwrap());
        let annotations = &of_kind(&documents, "Ingress")["metadata"]["annotations"];
        assert_eq!(annotations["nginx.ingress.kubernetes.io/backend-protocol"], protocol);
    }
}

#[test]
fn a_pod_has_time_to_answer_its_waits_before_the_kill() {
    let documents = yaml(&path("kubernetes/team.yaml"));
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let text = of_kind(&documents, "ConfigMap")["data"]["config.toml"].as_str().unwrap();
    let team = config(text, environment(container, Path::new("/none")));
    let grace = seconds(&pod["terminationGracePeriodSeconds"]);
    let before = seconds(&container["lifecycle"]["preStop"]["sleep"]["seconds"]);
    assert!(grace >= before + team.server.drain_timeout + SPARE, "{grace:?}");
    assert!(before >= Duration::from_secs(5), "the cluster takes that long to send nothing more: {before:?}");

    let longer = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let args = ["template", "c", &path(CHART), "--set", "drainSeconds=90,preStopSeconds=15"];
    std::fs::write(&longer, helm(&args)).unwrap();
    let documents = yaml(longer.path().to_str().unwrap());
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["terminationGracePeriodSeconds"], 110);
    let env = environment(&pod["containers"][0], Path::new("/none"));
    assert_eq!(config(text, env).server.drain_timeout, Duration::from_secs(90));

    let documents = yaml(&path("kubernetes/sidecar.yaml"));
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    let sidecar = &pod["initContainers"][0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    let text = of_kind(&documents, "ConfigMap")["data"]["config.toml"].as_str().unwrap();
    let drain = config(text, environment(sidecar, Path::new("/none"))).server.drain_timeout;
    assert!(seconds(&pod["terminationGracePeriodSeconds"]) >= drain + SPARE);
}

#[test]
fn the_admin_listener_of_a_sidecar_is_on_loopback_and_a_network_policy_covers_its_pod() {
    let documents = yaml(&path("kubernetes/sidecar.yaml"));
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"];
    let (sidecar, program) = (&pod["spec"]["initContainers"][0], &pod["spec"]["containers"][0]);
    let text = of_kind(&documents, "ConfigMap")["data"]["config.toml"].as_str().unwrap();
    let env = environment(sidecar, Path::new("/none"));
    let narrow = config(text, env.clone());
    let is_loopback = |at: &Listen| matches!(at, Listen::Tcp(address) if address.ip().is_loopback());
    assert!(narrow.admin.listen.as_ref().is_some_and(is_loopback), "{:?}", narrow.admin);
    assert!(narrow.server.listen.iter().all(is_loopback), "{:?}", narrow.server);
    // The listener is on loopback, so the probes are commands. They find the configuration at its default path.
    let mounts = sidecar["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().any(|mount| mount["mountPath"] == "/etc/clipgate"));
    assert!(read("docker/Dockerfile").contains("ENTRYPOINT [\"/clipgate\"]"));
    let command = |probe: &str| sidecar[probe]["exec"]["command"].clone();
    assert_eq!(command("startupProbe"), json!(["/clipgate", "health"]));
    assert_eq!(command("livenessProbe"), json!(["/clipgate", "health", "--live"]));
    // A sidecar that is not ready must not take its program out of service.
    assert!(sidecar["readinessProbe"].is_null());

    let policy = &of_kind(&documents, "NetworkPolicy")["spec"];
    assert_eq!(
        policy["podSelector"]["matchLabels"], pod["metadata"]["labels"],
        "the policy selects another pod"
    );
    assert_eq!(policy["policyTypes"], json!(["Ingress"]));
    let open = &program["ports"][0]["containerPort"];
    let monitoring =
        json!([{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "monitoring" } } }]);
    let wide = config(&text.replace("listen = \"127.0.0.1:9090\"", "listen = \"0.0.0.0:9090\""), env);
    assert_ne!(wide.admin.listen, narrow.admin.listen);
    let admin = port(wide.admin.listen.as_ref());
    let rules = json!([
        { "ports": [{ "port": open, "protocol": "TCP" }] },
        { "from": monitoring, "ports": [{ "port": admin, "protocol": "TCP" }] },
    ]);
    assert_eq!(policy["ingress"], rules);
}

#[test]
fn probes_policies_and_monitors_name_ports_of_the_gateway() {
    for (file, list) in
        [("kubernetes/team.yaml", "containers"), ("kubernetes/sidecar.yaml", "initContainers")]
    {
        let documents = yaml(&path(file));
        let container = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"][list][0];
        let text = of_kind(&documents, "ConfigMap")["data"]["config.toml"].as_str().unwrap();
        let config = config(text, environment(container, Path::new("/none")));
        let ports = container["ports"].as_array().unwrap();
        let named = |name: &str| {
            let port = ports.iter().find(|port| port["name"] == name);
            port.unwrap_or_else(|| panic!("{file} has no port {name}"))["containerPort"].as_u64().unwrap()
        };
        assert_eq!(named("admin"), port(config.admin.listen.as_ref()), "{file}");
        assert!(config.admin.token.is_some(), "{file}: without a token any client may empty the cache");
        if list == "containers" {
            for (probe, at) in
                [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]
            {
                assert_eq!(container[probe]["httpGet"]["path"], at, "{file} {probe}");
                assert_eq!(container[probe]["httpGet"]["port"], "admin", "{file} {probe}");
            }
            assert_eq!(named("clients"), port(config.server.listen.first()));
            let policy = &of_kind(&documents, "NetworkPolicy")["spec"];
            let open: Vec<&Value> =
                policy["ingress"].as_array().unwrap().iter().filter(|rule| rule["from"].is_null()).collect();
            assert_eq!(open.len(), 1, "{policy}");
            assert_eq!(open[0]["ports"][0]["port"], "clients", "all may reach that and no more");
            assert_eq!(of_kind(&documents, "ServiceMonitor")["spec"]["endpoints"][0]["port"], "admin");
        }
    }
}
