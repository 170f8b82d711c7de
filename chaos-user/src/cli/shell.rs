//! What a shell and `man` are told of the commands.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{CliError, Code, args::Cli, out::Stdout};
use crate::kernel;

/// A script with which a shell completes them.
pub(super) fn completion(shell: Shell) -> Result<Code, CliError> {
    Stdout::lock().text(&script(shell))?;
    Ok(Code::Success)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "faultline", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// A page for each of them, in a folder.
pub(super) fn manual(folder: &Path) -> Result<Code, CliError> {
    let written = clap_mangen::generate_to(Cli::command(), folder);
    written.map_err(|source| kernel::Error::new("write", folder.display().to_string(), source))?;
    Ok(Code::Success)
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process};

    use clap::ValueEnum;

    use super::*;

    #[test]
    fn shells_are_told_of_all_commands() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            for word in ["net", "sweep", "doctor", "direction"] {
                assert!(script.contains(word), "{shell}: no {word}");
            }
        }
    }

    #[test]
    fn each_command_has_a_page() {
        let folder = env::temp_dir().join(format!("fl-manual-{}", process::id()));
        fs::create_dir(&folder).expect("a folder");
        manual(&folder).expect("pages");
        for page in ["faultline.1", "faultline-net.1", "faultline-io-error.1", "faultline-time-skew.1"] {
            let text = fs::read_to_string(folder.join(page)).expect(page);
            assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
        }
        assert!(!folder.join("faultline-guard.1").exists());
        fs::remove_dir_all(&folder).expect("its end");
    }
}
