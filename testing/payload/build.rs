//! Builds the guest (`guest/main.rs`) with plain `rustc` into `OUT_DIR`.
//!
//! The guest is no Cargo target: it is linked to its own addresses, has no standard library, and
//! must stay out of `cargo check --workspace` and of the flags that Cargo passes to host code.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let guest = root.join("guest");
    let output = PathBuf::from(env::var("OUT_DIR")?).join("nyx-payload.elf");
    println!("cargo::rerun-if-changed={}", guest.display());
    println!("cargo::rerun-if-changed=build.rs");

    let status = Command::new(env::var("RUSTC")?)
        .arg(guest.join("main.rs"))
        .args([
            "--crate-name",
            "nyx_payload_guest",
            "--crate-type",
            "bin",
            "--edition",
            "2024",
        ])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        // Always optimized: the guest's time must be the machine's, not its own.
        .args([
            "-C",
            "opt-level=2",
            "-C",
            "panic=abort",
            "-C",
            "overflow-checks=off",
        ])
        .args([
            "-C",
            "codegen-units=1",
            "-C",
            "debuginfo=0",
            "-C",
            "strip=debuginfo",
        ])
        // Fixed addresses below 2 GiB. Interrupts switch stacks, but those taken in ring 0 do not:
        // no red zone.
        .args(["-C", "relocation-model=static", "-C", "code-model=small"])
        .args(["-C", "no-redzone=yes", "-C", "force-unwind-tables=no"])
        .args(["-C", "default-linker-libraries=no"])
        // The linker that comes with Rust, without a C compiler around it.
        .args(["-C", "linker=rust-lld", "-C", "linker-flavor=ld.lld"])
        .args(["-C", "link-args=-nostdlib -static --no-pie --build-id=none"])
        .args([
            "-C",
            "link-args=-z max-page-size=4096 -z noexecstack -z norelro",
        ])
        .arg("-C")
        .arg(format!("link-arg=-T{}", guest.join("payload.ld").display()))
        // The guest prints the file and line of a panic.
        .arg("--remap-path-prefix")
        .arg(format!("{}=payload", root.display()))
        .arg("-o")
        .arg(&output)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()?;
    if !status.success() {
        return Err(format!("the guest did not build: rustc ended with {status}").into());
    }
    let table = std::fs::read_to_string(guest.join("tests/mod.rs"))?;
    let names = test_names(&table)?;
    std::fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("tests.rs"),
        format!("{names:?}"),
    )?;
    println!("cargo::rustc-env=NYX_PAYLOAD_ELF={}", output.display());
    Ok(())
}

/// The names in the guest's table of tests, so that the host's list is the guest's.
fn test_names(source: &str) -> Result<Vec<&str>, &'static str> {
    let table = source
        .split_once("const TESTS: ")
        .ok_or("no table of tests")?
        .1;
    let table = table
        .split_once("];")
        .ok_or("the table of tests does not end")?
        .0;
    let rows = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("(\""));
    Ok(rows
        .filter_map(|row| Some(row.split_once('"')?.0))
        .collect())
}
