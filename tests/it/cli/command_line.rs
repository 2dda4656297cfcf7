//! Shell completions and manual pages, which are generated from the definition of the command line.

use std::process::Command;

use crate::harness::command::run;

const SUBCOMMANDS: [&str; 9] =
    ["serve", "sim", "check", "presets", "watch", "token", "health", "completions", "man"];

fn clipgate(args: &[&str]) -> String {
    run(env!("CARGO_BIN_EXE_clipgate"), "clipgate", args)
}

#[test]
fn bash_completes_subcommands_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("clipgate");
    std::fs::write(&script, clipgate(&["completions", "bash"])).unwrap();
    // The calls of bash for the tab key after the last word.
    let complete = |words: &[&str]| {
        let script_call = r#"source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _clipgate clipgate "${@: -1}" "${@: -2:1}"; printf '%s\n' "${COMPREPLY[@]}""#;
        let args = [&["-c", script_call, script.to_str().unwrap()], words].concat();
        run("bash", "bash", &args).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for subcommand in SUBCOMMANDS {
        assert_eq!(complete(&["clipgate", subcommand]), [subcommand]);
    }
    assert_eq!(complete(&["clipgate", "serve", "--sp"]), ["--speed"]);
    assert_eq!(complete(&["clipgate", "completions", "z"]), ["zsh"]);
    assert_eq!(complete(&["clipgate", "presets", "rep"]), ["replicate"]);
}

#[test]
fn zsh_and_fish_scripts_have_every_subcommand() {
    for (shell, marker) in [("zsh", "#compdef clipgate"), ("fish", "complete -c clipgate")] {
        let script = clipgate(&["completions", shell]);
        assert!(script.contains(marker), "{script}");
        for subcommand in SUBCOMMANDS {
            assert!(script.contains(subcommand), "the script of {shell} has no {subcommand}");
        }
    }
}

#[test]
fn each_subcommand_has_a_manual_page_with_all_flags() {
    let dir = tempfile::tempdir().unwrap();
    clipgate(&["man", dir.path().to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
    let main = page("clipgate");
    assert_eq!(main, clipgate(&["man"]));
    for subcommand in SUBCOMMANDS {
        assert!(main.contains(&format!("clipgate\\-{subcommand}(1)")), "{main}");
        let page = page(&format!("clipgate-{subcommand}"));
        let help =
            Command::new(env!("CARGO_BIN_EXE_clipgate")).args([subcommand, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let flags: Vec<_> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
        assert!(!flags.is_empty(), "{help}");
        for flag in flags.iter().map(|flag| flag.trim_end_matches([',', ';', '.', ']', ')'])) {
            let flag = flag.replace('-', "\\-");
            assert!(
                page.contains(&flag) || main.contains(&flag),
                "clipgate-{subcommand}.1 has no {flag}: {page}"
            );
        }
    }
}
