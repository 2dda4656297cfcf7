//! Warnings: valid settings that may surprise.

use std::net::IpAddr;
use std::time::Duration;

use super::presets::preset;
use super::schema::preset_route;
use super::types::{AuthMode, Config, Listen};
use crate::protocol::allowed_host::HostPattern;
use crate::secret::Secret;

impl Config {
    /// Returns the warnings, the most serious first.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some((mode, harm)) = self.harm_without_credentials() {
            for at in self.server.listen.iter().filter(|at| is_open(at)) {
                warnings.push(format!(
                    "auth.mode is \"{mode}\" and {at} is open to other machines: every client there can {harm}. \
                     Listen on 127.0.0.1 or a unix socket, or restrict access in another way."
                ));
            }
            if self.server.cors_origins.iter().any(|origin| origin == "*") {
                warnings.push(format!(
                    "auth.mode is \"{mode}\" and server.cors_origins is \"*\": any page that a browser on this \
                     machine opens can {harm}. List the origins of your own pages."
                ));
            }
        }
        if let Some(at) = self.admin.listen.as_ref().filter(|at| is_open(at) && self.admin.token.is_none()) {
            warnings.push(format!(
                "admin.listen is {at}, open to other machines, and admin.token is not set: every client there can \
                 see the dashboard and empty the cache. Set admin.token."
            ));
        }
        if self.server.allowed_hosts.contains(&HostPattern::Any)
            && let Some(harm) = self.rebinding_harm()
        {
            warnings.push(format!(
                "server.allowed_hosts is \"*\": any web site that a browser on this machine visits can point its \
                 own name at this gateway and {harm}. List your own names."
            ));
        }
        let url = &self.upstream.base_url;
        if url.scheme_str() == Some("http")
            && !url.host().is_some_and(is_this_machine)
            && !matches!(self.auth.mode, AuthMode::Open)
        {
            warnings.push(format!(
                "upstream.base_url is {url}, plain http to another machine: API keys are sent unencrypted. Use \
                 https:// if the API supports it."
            ));
        }
        let engines = self.cluster.iter().flat_map(|cluster| &cluster.urls);
        for url in engines.filter(|url| !url.is_tls && !is_this_machine(&url.host)) {
            warnings.push(format!(
                "cluster.url is {url}, without TLS to another machine: its password is sent unencrypted, and a machine on \
                 the way can change ages of states and disturb replicas. Use rediss:// if the engine supports it."
            ));
        }
        self.warn_of_routes(&mut warnings);
        if self.upstream.api_key.is_some() && !matches!(self.auth.mode, AuthMode::Sidecar) {
            warnings.push(
                "upstream.api_key is set but not used: only auth.mode = \"sidecar\" sends it.".to_owned(),
            );
        }
        let keys = [("upstream.api_key", &self.upstream.api_key), ("admin.token", &self.admin.token)];
        let cluster_secret =
            self.cluster.iter().map(|cluster| ("cluster.secret".to_owned(), &cluster.secret));
        let keys = keys.into_iter().filter_map(|(key, secret)| Some((key.to_owned(), secret.as_ref()?)));
        let members = (1..).zip(self.auth.members());
        let members = members.map(|(n, m)| (format!("team.members #{n} upstream_key"), &m.upstream_key));
        for (key, _) in
            keys.chain(cluster_secret).chain(members).filter(|(_, secret)| starts_with_dollar(secret))
        {
            warnings.push(format!(
                "{key} begins with a `$`, which has no special meaning. Use \"env:NAME\" for a variable."
            ));
        }
        warnings
    }

    /// Returns the mode in which clients need no credential, and the harm that any client can do.
    fn harm_without_credentials(&self) -> Option<(&'static str, &'static str)> {
        match self.auth.mode {
            AuthMode::Sidecar => Some(("sidecar", "spend upstream.api_key")),
            AuthMode::Open => Some(("open", "use the upstream")),
            AuthMode::Passthrough | AuthMode::Team(_) => None,
        }
    }

    /// Adds the warnings of `[[routes]]`. The times of a preset are deliberate.
    fn warn_of_routes(&self, warnings: &mut Vec<String>) {
        const SECOND: Duration = Duration::from_secs(1);
        const HOUR: Duration = Duration::from_secs(3600);
        let time = humantime::format_duration;
        for route in &self.routes {
            let named = self.route_presets.iter().find(|named| named.route == route.name);
            let preset = named.and_then(|named| preset(&named.preset).ok());
            let usual = preset.and_then(preset_route);
            let name = &route.name;
            let usual_pace = usual.as_ref().map_or(SECOND, |usual| usual.pace.min(SECOND));
            if route.never_holds() && route.pace < usual_pace {
                warnings.push(format!(
                    "routes: pace of {name:?} is {}: each job that is waited for costs the upstream up to {:.0} requests \
                     per second. Set pace to 1s or more, unless the upstream allows this.",
                    time(route.pace),
                    1.0 / route.pace.as_secs_f64()
                ));
            }
            let usual_live_ttl = usual.as_ref().and_then(|usual| usual.lifetimes.live);
            let usual_ttl = usual.and_then(|usual| usual.lifetimes.success).unwrap_or(HOUR).max(HOUR);
            if let Some(ttl) = route.lifetimes.success.filter(|ttl| *ttl > usual_ttl) {
                warnings.push(format!(
                    "routes: completed_ttl of {name:?} is {}: links in results often expire earlier, and clients would \
                     get expired ones from the cache. Keep it below the lifetime of the links.",
                    time(ttl)
                ));
            }
            let is_usual = usual_live_ttl.is_some_and(|usual| route.lifetimes.live == Some(usual));
            if let Some(ttl) =
                route.lifetimes.live.filter(|ttl| route.never_holds() && *ttl > route.pace && !is_usual)
            {
                warnings.push(format!(
                    "routes: live_ttl of {name:?} is {}, longer than its pace of {}: plain GETs get states of that age, \
                     older than those that waits see. Set live_ttl to at most the pace.",
                    time(ttl),
                    time(route.pace)
                ));
            }
            let lines = preset.map(|preset| preset.auth.lines_missing_in(&self.auth)).unwrap_or_default();
            if let Some(preset) = preset.filter(|_| !lines.is_empty()) {
                warnings.push(format!(
                    "routes: {name:?} has the preset {:?}, whose API needs {} in [auth]. Copy the lines that \
                     `clipgate presets {}` prints.",
                    preset.name,
                    lines.join(" and "),
                    preset.name
                ));
            }
            let host = self.upstream.base_url.host().unwrap_or_default().to_ascii_lowercase();
            if let Some(preset) = preset.filter(|preset| !preset.is_for_host(&host)) {
                warnings.push(format!(
                    "routes: {name:?} has the preset {:?} of {}, but upstream.base_url is {}. Correct one of them.",
                    preset.name, preset.base_url, self.upstream.base_url
                ));
            }
        }
    }

    /// Returns the harm that a page can do with a name of its own for a listener (DNS rebinding), if there is one.
    fn rebinding_harm(&self) -> Option<&'static str> {
        let is_tcp = |at: &Listen| matches!(at, Listen::Tcp(_));
        if let Some((_, harm)) = self.harm_without_credentials().filter(|_| self.server.tls.is_none()) {
            Some(harm)
        } else if self.admin.token.is_none() && self.admin.listen.as_ref().is_some_and(is_tcp) {
            Some("see the dashboard and empty the cache")
        } else {
            None
        }
    }
}

fn is_open(listen: &Listen) -> bool {
    matches!(listen, Listen::Tcp(addr) if !addr.ip().to_canonical().is_loopback())
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn starts_with_dollar(secret: &Secret) -> bool {
    secret.expose().starts_with('$')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(env: &[(&str, &str)]) -> Vec<String> {
        let env = env.iter().map(|(key, value)| (format!("CLIPGATE__{key}"), (*value).to_owned()));
        Config::load(None, env).unwrap().warnings()
    }

    const MEMBER: &str = "[{ name = \"a\", upstream_key = \"$K\", \
        token_sha256 = \"0000000000000000000000000000000000000000000000000000000000000000\" }]";

    #[test]
    fn the_defaults_have_no_warnings() {
        assert_eq!(warnings(&[]), [""; 0]);
    }

    #[test]
    fn each_surprising_setting_has_a_warning() {
        let sidecar = [("AUTH__MODE", "sidecar"), ("UPSTREAM__API_KEY", "k")];
        let with = |more: &[(&'static str, &'static str)]| [&sidecar[..], more].concat();
        // (variables, start of each warning)
        type WarningCase<'a> = (Vec<(&'a str, &'a str)>, &'a [&'a str]);
        let cases: &[WarningCase<'_>] = &[
            (with(&[]), &[]),
            (with(&[("SERVER__LISTEN", "[::1]:1")]), &[]),
            (with(&[("SERVER__LISTEN", "unix:a")]), &[]),
            (with(&[("SERVER__LISTEN", "0.0.0.0:1")]), &["auth.mode is \"sidecar\" and 0.0.0.0:1 is open"]),
            (with(&[("SERVER__CORS_ORIGINS", "[\"https://a.example\"]")]), &[]),
            (
                with(&[("SERVER__CORS_ORIGINS", "[\"*\"]")]),
                &["auth.mode is \"sidecar\" and server.cors_origins is \"*\""],
            ),
            (vec![("SERVER__CORS_ORIGINS", "[\"*\"]")], &[]),
            (vec![("AUTH__MODE", "open"), ("UPSTREAM__BASE_URL", "http://api")], &[]),
            (
                vec![("AUTH__MODE", "open"), ("SERVER__LISTEN", "0.0.0.0:1"), ("SERVER__ALLOWED_HOSTS", "*")],
                &[
                    "auth.mode is \"open\" and 0.0.0.0:1 is open",
                    "server.allowed_hosts is \"*\": any web site",
                ],
            ),
            (with(&[("SERVER__ALLOWED_HOSTS", "[\"a.example\", \".example\"]")]), &[]),
            (with(&[("SERVER__ALLOWED_HOSTS", "*")]), &["server.allowed_hosts is \"*\": any web site"]),
            (vec![("SERVER__ALLOWED_HOSTS", "*")], &["server.allowed_hosts is \"*\": any web site"]),
            (vec![("SERVER__ALLOWED_HOSTS", "*"), ("ADMIN__LISTEN", "")], &[]),
            (vec![("SERVER__ALLOWED_HOSTS", "*"), ("ADMIN__TOKEN", "t")], &[]),
            (vec![("SERVER__LISTEN", "0.0.0.0:1")], &[]),
            (vec![("WAIT__TIMEOUT", "5m")], &[]),
            (vec![("UPSTREAM__BASE_URL", "http://127.0.0.1:1")], &[]),
            (vec![("UPSTREAM__BASE_URL", "http://[::1]:1")], &[]),
            (vec![("UPSTREAM__BASE_URL", "http://localhost")], &[]),
            (vec![("UPSTREAM__BASE_URL", "http://api")], &["upstream.base_url is http://api/, plain http"]),
            (vec![("UPSTREAM__API_KEY", "k")], &["upstream.api_key is set but not used"]),
            (vec![("ADMIN__LISTEN", "[::]:1"), ("ADMIN__TOKEN", "$T")], &["admin.token begins with a `$`"]),
            (vec![("ADMIN__LISTEN", "[::]:1"), ("ADMIN__TOKEN", "t")], &[]),
            (vec![("ADMIN__LISTEN", "[::]:1")], &["admin.listen is [::]:1, open"]),
            (vec![("ADMIN__LISTEN", "")], &[]),
            (
                vec![("AUTH__MODE", "team"), ("TEAM__MEMBERS", MEMBER)],
                &["team.members #1 upstream_key begins"],
            ),
            (vec![("LIMITS__CALLS_BURST", "1")], &[]),
        ];
        for (set, expected) in cases {
            let warnings = warnings(set);
            assert_eq!(warnings.len(), expected.len(), "{set:?} {warnings:?}");
            for (warning, start) in warnings.iter().zip(*expected) {
                assert!(warning.starts_with(start), "{set:?} {warning}");
            }
        }
        assert_eq!(cases.len(), 27);
    }
}
