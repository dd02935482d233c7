//! Takes the ELF kernel (`vmlinux`) out of a bzImage.
//!
//! Source: the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst): `setup_sects` at 0x1f1,
//! `header` "HdrS" at 0x202, `payload_offset` at 0x248, `payload_length` at 0x24c, the payload counted
//! from the start of the protected-mode code.

use std::io::{Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::tool::Tool;

/// How the kernel inside a bzImage is packed, and the program that unpacks it.
const PACKINGS: [(&[u8], &str, &[&str]); 6] = [
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", &["-dc"]),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", &["-dcq"]),
    (&[0x1f, 0x8b], "gzip", &["-dc"]),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4", &["-dc"]),
    (b"BZh", "bzip2", &["-dc"]),
    (&[0x5d, 0, 0], "xz", &["-dc", "--format=lzma"]),
];

/// The compressed payload of a bzImage.
fn payload(image: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| -> Result<usize> {
        let bytes = image
            .get(at..at + 4)
            .context("the image ends inside its header")?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    ensure!(
        image.get(0x202..0x206) == Some(b"HdrS"),
        "no bzImage: the mark HdrS is absent"
    );
    // Zero means four, for the sake of very old images.
    let sectors = match image[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    // The last four bytes are the unpacked length, put there for the kernel's own unpacker.
    let end = (start + word(0x24c)?)
        .checked_sub(4)
        .context("an empty payload")?;
    image
        .get(start..end)
        .context("the image is shorter than its header says")
}

/// Unpacks the ELF kernel from a bzImage.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image)?;
    let unpacked = if payload.starts_with(b"\x7fELF") {
        payload.to_vec()
    } else {
        unpack(payload)?
    };
    ensure!(
        unpacked.starts_with(b"\x7fELF"),
        "what the bzImage holds is not an ELF kernel"
    );
    Ok(unpacked)
}

fn unpack(payload: &[u8]) -> Result<Vec<u8>> {
    let Some((_, program, arguments)) = PACKINGS
        .iter()
        .find(|(magic, ..)| payload.starts_with(magic))
    else {
        bail!(
            "the kernel is packed in an unknown way: {:02x?}",
            &payload[..payload.len().min(8)]
        );
    };
    filter(&Tool::new(program).args(*arguments), payload)
}

/// Sends `input` through a program.
pub(crate) fn filter(tool: &Tool, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = tool
        .command()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| tool.failure())?;
    let mut stdin = child.stdin.take().context("no pipe to the program")?;
    let mut stdout = child.stdout.take().context("no pipe from the program")?;
    let mut output = Vec::new();
    std::thread::scope(|scope| {
        // A program may stop reading when it has what it wants: its status tells, not the broken pipe.
        scope.spawn(move || stdin.write_all(input));
        stdout.read_to_end(&mut output)
    })?;
    // gzip and zstd complain of bytes behind the stream and have still delivered all of it, so the
    // content is judged by the caller and a failure counts only when nothing came.
    let status = child.wait()?;
    ensure!(
        status.success() || !output.is_empty(),
        "{}: {status}",
        tool.failure()
    );
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 512 * 3 + 16];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&[0xaa; 4]);
        image
    }

    #[test]
    fn a_packed_kernel_is_unpacked() {
        let kernel = [b"\x7fELF".as_slice(), &[7; 4000]].concat();
        let packed = filter(&Tool::new("gzip").arg("-c"), &kernel).unwrap();
        assert_eq!(vmlinux(&bzimage(&packed)).unwrap(), kernel);
        assert_eq!(vmlinux(&bzimage(&kernel)).unwrap(), kernel);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let text = |image: &[u8]| vmlinux(image).unwrap_err().to_string();
        assert!(text(&[0; 4096]).contains("HdrS"));
        assert!(text(b"short").contains("HdrS"));
        assert!(text(&bzimage(b"whatever")).contains("unknown way"));
        let packed = filter(&Tool::new("gzip").arg("-c"), b"a text").unwrap();
        assert!(text(&bzimage(&packed)).contains("not an ELF"));
        let mut cut = bzimage(b"\x7fELF and more");
        cut.truncate(512 * 3 + 18);
        assert!(text(&cut).contains("shorter than"));
    }
}
