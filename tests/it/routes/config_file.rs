//! Routes from the text of a configuration file, as a user writes it.

use clipgate::testing::config::Config;

/// Loads a configuration from this text.
pub(crate) fn config_from(text: &str) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(Some(file.path()), []).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// Returns a preset's route with these lines below it.
pub(crate) fn preset_with(preset: &str, lines: &str) -> Vec<clipgate::core::route::Route> {
    config_from(&format!("[[routes]]\npreset = \"{preset}\"\n{lines}\n")).routes
}
