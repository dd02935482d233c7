//! Schemathesis, which tests an HTTP interface against its own description; unpacked and never installed.

use std::path::PathBuf;

use anyhow::Result;

use crate::packages::{self, Need};
use crate::produce::produce;
use crate::tool::Tool;
use crate::workspace;

/// The version whose findings the project has answered.
const VERSION: &str = "4.32.5";

/// What unpacking it needs.
const PIP: &[Need] = &[Need {
    package: "python3-pip",
    why: "fetches schemathesis, which tests the control socket's interface",
}];

/// The command that runs it, fetched the first time; arguments follow.
pub fn schemathesis() -> Result<Tool> {
    let folder = workspace::cache_folder().join("schemathesis");
    let recipe = format!("schemathesis {VERSION}, layout 1\n");
    produce(&folder, &recipe, |fresh: &std::path::Path| {
        eprintln!("nyx: fetching schemathesis: it tests the control socket's interface");
        packages::install(PIP)?;
        let target: PathBuf = fresh.join("python");
        Tool::new("/usr/bin/python3")
            .args(["-m", "pip", "--quiet", "install", "--target"])
            .arg(&target)
            .arg(format!("schemathesis=={VERSION}"))
            .output()
            .map(drop)
    })?;
    Ok(Tool::new("/usr/bin/python3")
        .args([
            "-c",
            "from schemathesis.cli import schemathesis; schemathesis()",
        ])
        .env("PYTHONPATH", folder.join("python"))
        .env("PIP_ROOT_USER_ACTION", "ignore"))
}
