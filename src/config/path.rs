//! Path of the configuration file if the command line names none.

use std::path::{Path, PathBuf};

/// Returns the named file, else the first that exists of `$XDG_CONFIG_HOME/clipgate/config.toml` (`~/.config` without
/// that variable) and `/etc/clipgate/config.toml`. `None`: the defaults apply.
///
/// A `config.toml` in the working directory is never read unless it is named: the configuration must not depend on
/// the directory in which the gateway is started.
pub fn locate(explicit: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Option<PathBuf> {
    match explicit {
        Some(path) => Some(path.to_owned()),
        None => default_paths(env).into_iter().find(|path| path.exists()),
    }
}

/// Returns the default paths, the first to try first.
fn default_paths(env: impl IntoIterator<Item = (String, String)>) -> Vec<PathBuf> {
    let (mut xdg, mut home) = (None, None);
    for (name, value) in env {
        match name.as_str() {
            "XDG_CONFIG_HOME" => xdg = Some(PathBuf::from(value)),
            "HOME" => home = Some(PathBuf::from(value).join(".config")),
            _ => {}
        }
    }
    // The XDG Base Directory Specification requires that relative paths are ignored.
    let user = xdg.filter(|path| path.is_absolute()).or(home.filter(|path| path.is_absolute()));
    user.into_iter().chain([PathBuf::from("/etc")]).map(|dir| dir.join("clipgate/config.toml")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_file_precedes_that_of_the_machine() {
        type PathCase<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let cases: &[PathCase<'_>] = &[
            (&[], &["/etc/clipgate/config.toml"]),
            (&[("HOME", "/h")], &["/h/.config/clipgate/config.toml", "/etc/clipgate/config.toml"]),
            (
                &[("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")],
                &["/x/clipgate/config.toml", "/etc/clipgate/config.toml"],
            ),
            (
                &[("XDG_CONFIG_HOME", ""), ("HOME", "/h")],
                &["/h/.config/clipgate/config.toml", "/etc/clipgate/config.toml"],
            ),
            (&[("XDG_CONFIG_HOME", "here")], &["/etc/clipgate/config.toml"]),
        ];
        for (env, expected) in cases {
            let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            assert_eq!(default_paths(env), expected.iter().map(PathBuf::from).collect::<Vec<_>>());
        }
        assert_eq!(cases.len(), 5);
    }

    #[test]
    fn a_named_file_is_used_even_if_it_does_not_exist() {
        let named = Path::new("/no/such/file.toml");
        assert_eq!(locate(Some(named), []), Some(named.to_owned()));
    }

    #[test]
    fn a_default_file_is_used_if_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let env = || [("XDG_CONFIG_HOME".to_owned(), dir.path().display().to_string())];
        let path = dir.path().join("clipgate/config.toml");
        assert_ne!(locate(None, env()), Some(path.clone()));
        std::fs::create_dir(dir.path().join("clipgate")).unwrap();
        std::fs::write(&path, "").unwrap();
        assert_eq!(locate(None, env()), Some(path));
    }
}
