//! `nyx doctor`.

use crate::args::DoctorArgs;
use crate::exit::{REFUSED, SUCCESS, refuse};
use crate::output::json;
use nyx_host::GuestKernels;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

pub(crate) fn doctor(args: &DoctorArgs) -> ExitCode {
    let report = nyx_host::examine();
    let text = if args.json || json() {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => text + "\n",
            Err(e) => return refuse(e),
        }
    } else {
        report.render(std::io::stdout().is_terminal())
    };
    // A reader that has seen enough is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    // So that a script can ask before it runs anything.
    ExitCode::from(match report.guest_kernels {
        GuestKernels::Native | GuestKernels::Emulated => SUCCESS,
        GuestKernels::Unavailable => REFUSED,
    })
}
