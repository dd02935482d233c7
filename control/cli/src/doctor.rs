//! `nyx doctor`.
pub(crate) fn doctor(_: &crate::args::DoctorArgs) -> std::process::ExitCode { std::process::ExitCode::SUCCESS }
