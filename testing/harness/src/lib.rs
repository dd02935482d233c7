//! What the project's tests and demo stand on: Debian packages, stock guest kernels, initramfs and
//! userland images, and the lab (an emulated machine in which `/dev/kvm` runs guest kernels).
//!
//! Everything fetched or built is kept in one cache folder ([`workspace::cache_folder`]) and made anew
//! only when its recipe changes. Nothing here is needed to *use* Nyx.
//!
//! | Module | Gives |
//! |---|---|
//! | [`packages`] | Debian packages present on this machine, installed when missing |
//! | [`guests`] | stock Debian kernels: `vmlinuz`, `vmlinux`, modules |
//! | [`initramfs`] | a generic guest initramfs, and the writer for special ones |
//! | [`prometheus`] | Debian's Prometheus and promtool, unpacked beside the system |
//! | [`schemathesis`] | a tester of HTTP interfaces, unpacked beside the system |
//! | [`userland`] | a small Debian disk, whole-disk ext4 and GPT |
//! | [`lab`] | an emulated AMD-V host that runs any command of this machine |
//!
//! Errors are [`anyhow::Error`]s: nobody acts on their kind, a person reads them.

#![forbid(unsafe_code)]

pub mod bzimage;
pub mod cpio;
pub mod guests;
pub mod initramfs;
pub mod lab;
pub mod modules;
pub mod packages;
pub mod produce;
pub mod prometheus;
pub mod schemathesis;
pub mod tool;
pub mod userland;
pub mod workspace;
