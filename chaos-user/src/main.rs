//! The `faultline` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    match chaos_user::cli::run(std::env::args_os()) {
        Ok(code) => code.into(),
        Err(error) => {
            error.print();
            error.code().into()
        }
    }
}
