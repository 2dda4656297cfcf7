//! What is made from the command line's own definition: what shells complete by, and the manual.

use std::process::Command;

use crate::harness::command::run;

const CALLS: [&str; 8] = ["serve", "sim", "check", "watch", "token", "health", "completions", "man"];

fn clipgate(args: &[&str]) -> String {
    run(env!("CARGO_BIN_EXE_clipgate"), "clipgate", args)
}

#[test]
fn bash_completes_calls_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("clipgate");
    std::fs::write(&script, clipgate(&["completions", "bash"])).unwrap();
    // What bash does when the tab key is hit after the last word.
    let complete = |words: &[&str]| {
        let ask = r#"source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _clipgate clipgate "${@: -1}" "${@: -2:1}"; printf '%s\n' "${COMPREPLY[@]}""#;
        let args = [&["-c", ask, script.to_str().unwrap()], words].concat();
        run("bash", "bash", &args).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for call in CALLS {
        assert_eq!(complete(&["clipgate", call]), [call]);
    }
    assert_eq!(complete(&["clipgate", "serve", "--sp"]), ["--speed"]);
    assert_eq!(complete(&["clipgate", "completions", "z"]), ["zsh"]);
}

#[test]
fn there_is_a_script_for_each_usual_shell() {
    for (shell, sign) in [("zsh", "#compdef clipgate"), ("fish", "complete -c clipgate")] {
        let script = clipgate(&["completions", shell]);
        assert!(script.contains(sign), "{script}");
        for call in CALLS {
            assert!(script.contains(call), "{shell} does not know {call}");
        }
    }
}

#[test]
fn each_call_has_a_manual_page_with_all_its_flags() {
    let dir = tempfile::tempdir().unwrap();
    clipgate(&["man", dir.path().to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
    let main = page("clipgate");
    assert_eq!(main, clipgate(&["man"]));
    for call in CALLS {
        assert!(main.contains(&format!("clipgate\\-{call}(1)")), "{main}");
        let page = page(&format!("clipgate-{call}"));
        let help = Command::new(env!("CARGO_BIN_EXE_clipgate")).args([call, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let flags: Vec<_> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
        assert!(!flags.is_empty(), "{help}");
        for flag in flags.iter().map(|flag| flag.trim_end_matches([',', ';', '.', ']', ')'])) {
            let flag = flag.replace('-', "\\-");
            assert!(page.contains(&flag) || main.contains(&flag), "clipgate-{call}.1 has no {flag}: {page}");
        }
    }
}
