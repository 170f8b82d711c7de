//! What people install: the program, what a shell completes its words by, and the pages of the manual, in one archive.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    cargo::{build, run as run_command, shown, target},
    setup,
};

/// Shells, and what the file is called that each looks for.
const SHELLS: [(&str, &str); 3] =
    [("bash", "faultline.bash"), ("zsh", "_faultline"), ("fish", "faultline.fish")];

/// `cargo xtask dist`.
///
/// # Errors
///
/// If it does not build, or the archive cannot be written.
pub(crate) fn run() -> Result<()> {
    setup::build_tools()?;
    let program = build(&["faultline"])?.join("faultline");
    let name = format!("faultline-{}-x86_64-linux", env!("CARGO_PKG_VERSION"));
    let dist = target()?.join("dist");
    let folder = dist.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let (completions, manual) = (folder.join("completions"), folder.join("man/man1"));
    for folder in [&completions, &manual] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::copy(&program, folder.join("faultline")).with_context(|| program.display().to_string())?;
    for (shell, file) in SHELLS {
        let mut command = Command::new(&program);
        let output = command.args(["completion", shell]).output().with_context(|| shown(&command))?;
        ensure!(output.status.success(), "`{}`: {}", shown(&command), output.status);
        fs::write(completions.join(file), output.stdout).context(file)?;
    }
    run_command(Command::new(&program).arg("manual").arg(&manual))?;
    let archive = dist.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--file"]);
    run_command(tar.arg(&archive).arg("--directory").arg(&dist).arg(&name))?;
    let size = |path: &std::path::Path| fs::metadata(path).map(|data| data.len() as f64 / 1e6);
    println!("{}: {:.1} MB, the program {:.1}", archive.display(), size(&archive)?, size(&program)?);
    Ok(())
}
