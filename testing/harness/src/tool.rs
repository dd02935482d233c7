//! Runs the external programs that the harness leans on, with errors that say what was run.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Where Debian keeps administration tools; a plain user's `PATH` often lacks them.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// One invocation of an external program.
#[derive(Debug)]
pub struct Tool {
    program: OsString,
    arguments: Vec<OsString>,
    folder: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
}

impl Tool {
    /// Names the program to run; it is looked up in `PATH` and the system folders.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            folder: None,
            environment: Vec::new(),
        }
    }

    /// Appends one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Sets the folder to run in.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Sets one environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs to the end and gives its standard output; a failure quotes its standard error.
    pub fn output(&self) -> Result<Vec<u8>> {
        let output = self
            .command()
            .stdin(Stdio::null())
            .output()
            .with_context(|| self.failure())?;
        self.check(&output)?;
        Ok(output.stdout)
    }

    /// Runs to the end and gives its standard output as text.
    pub fn text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.output()?).into_owned())
    }

    /// Runs to the end with its output going to our standard error, so a long step shows progress.
    pub fn show(&self) -> Result<()> {
        let status = self
            .command()
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .status()
            .with_context(|| self.failure())?;
        if !status.success() {
            bail!("{}: {status}", self.failure());
        }
        Ok(())
    }

    /// Is the program there and does it end well? Its output is dropped.
    pub fn succeeds(&self) -> bool {
        self.command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// The prepared command, for callers that wire its streams themselves.
    pub fn command(&self) -> Command {
        let mut command =
            Command::new(find(&self.program).unwrap_or_else(|| self.program.clone().into()));
        command.args(&self.arguments);
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        // Output that is parsed must not depend on the user's language.
        command.env("LC_ALL", "C.UTF-8").env("PATH", search_path());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    fn check(&self, output: &Output) -> Result<()> {
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = stderr.lines().collect();
        let last = lines[lines.len().saturating_sub(12)..].join("\n");
        bail!("{}: {}\n{last}", self.failure(), output.status);
    }

    /// The beginning of an error about this invocation.
    pub(crate) fn failure(&self) -> String {
        let mut line = format!("cannot run `{}", self.program.to_string_lossy());
        for argument in self.arguments.iter().take(8) {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        if self.arguments.len() > 8 {
            line.push_str(" …");
        }
        line.push('`');
        line
    }
}

/// Finds a program in `PATH` and the system folders.
pub fn find(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let program = Path::new(program.as_ref());
    if program.components().count() > 1 {
        return program.exists().then(|| program.to_owned());
    }
    std::env::split_paths(&search_path())
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// `PATH` with the system folders behind it.
pub fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for folder in SYSTEM_FOLDERS {
        if !folders.iter().any(|known| known == Path::new(folder)) {
            folders.push(folder.into());
        }
    }
    // Only a folder with a colon in its name could fail to join; then the plain PATH has to do.
    std::env::join_paths(folders).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_quotes_its_error() {
        let error = Tool::new("sh")
            .args(["-c", "echo broken >&2; exit 3"])
            .output()
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("`sh -c"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("broken"), "{text}");
    }

    #[test]
    fn output_and_environment_come_through() {
        let text = Tool::new("sh")
            .args(["-c", "echo $WORD"])
            .env("WORD", "ok")
            .text()
            .unwrap();
        assert_eq!(text, "ok\n");
    }

    #[test]
    fn the_system_folders_are_searched() {
        assert!(
            find("ldconfig").is_some(),
            "every Debian has /sbin/ldconfig"
        );
        assert!(find("no-such-program-here").is_none());
    }
}
