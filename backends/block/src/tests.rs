//! Every engine against a model, and everything that can go wrong when opening an image.

use super::*;
use nyx_device::{BlockDone, BlockOp, BlockQueue, BlockRequest};
use nyx_memory::{DmaSpace, Extent, Memory, PinnedBuffers, RamConfig};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, Permissions};

const RAM: usize = 8 << 20;
const ENGINES: [Engine; 4] = [Engine::Auto, Engine::IoUring, Engine::Threads, Engine::Sync];

/// A folder on a disk, as opposed to tmpfs.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn image(dir: &Path, size: u64) -> PathBuf {
    let path = dir.join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

struct Guest {
    _memory: Memory,
    space: DmaSpace,
}

impl Guest {
    fn new() -> Self {
        let extents = vec![Extent {
            base: GuestAddress(0),
            len: RAM,
        }];
        let memory = Memory::allocate(&RamConfig {
            extents,
            ..RamConfig::default()
        })
        .unwrap();
        let space = memory.space();
        Self {
            _memory: memory,
            space,
        }
    }

    fn buffers(&self, parts: &[(u64, usize)]) -> PinnedBuffers {
        let view = self.space.view();
        let mut buffers = view.buffers();
        for (at, len) in parts {
            view.pin(&mut buffers, GuestAddress(*at), *len, Permissions::Write)
                .unwrap();
        }
        buffers
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.space
            .view()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    fn fill(&self, at: u64, bytes: &[u8]) {
        self.space
            .view()
            .write_slice(bytes, GuestAddress(at))
            .unwrap();
    }
}

fn wait_readable(queue: &dyn BlockQueue) {
    let fd = queue
        .ready_fd()
        .expect("a queue with requests in flight has a descriptor");
    let timeout = rustix::event::Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let mut fds = [rustix::event::PollFd::new(
        &fd,
        rustix::event::PollFlags::IN,
    )];
    loop {
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(n) => break assert_eq!(n, 1, "no completion within 30 s"),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("{e}"),
        }
    }
}

/// Waits for everything in flight.
fn drain(queue: &mut dyn BlockQueue) -> Vec<BlockDone> {
    let mut done = Vec::new();
    queue.kick().unwrap();
    queue.completions(&mut done);
    while queue.in_flight() != 0 {
        wait_readable(queue);
        queue.completions(&mut done);
    }
    done
}

fn one(queue: &mut dyn BlockQueue, offset: u64, op: BlockOp) -> io::Result<()> {
    queue.submit(BlockRequest { id: 7, offset, op });
    let mut done = drain(queue);
    assert_eq!((done.len(), done[0].id), (1, 7));
    done.remove(0).result
}

/// xorshift64*: reproducible and good enough to choose offsets.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % below
    }
}

/// Random operations in batches whose ranges do not overlap, compared with a vector.
fn compare_with_model(config: RawConfig, align_memory: u64) {
    let size = std::fs::metadata(&config.path).unwrap().len();
    let label = format!("{config:?}");
    let backend = Raw::open(config).unwrap();
    let block = u64::from(backend.geometry().logical_block);
    let mut queue = backend.open_queue().unwrap();
    let (guest, mut dice) = (Guest::new(), Dice(0x1234_5678));
    let mut model = vec![0u8; size as usize];
    for _ in 0..60 {
        let mut reads = Vec::new();
        let lane = size / 16;
        for id in 0..16 {
            let blocks = lane / block;
            let first = dice.roll(blocks);
            let count = 1 + dice.roll((blocks - first).min(64));
            let (offset, len) = (id * lane + first * block, (count * block) as usize);
            // Guest buffers: split at an odd place, and not next to each other.
            let base =
                id * (RAM as u64 / 16) + dice.roll((240 << 10) / align_memory) * align_memory;
            let cut = if align_memory == 1 {
                dice.roll(len as u64) as usize
            } else {
                len / 2 / block as usize * block as usize
            };
            let parts = [(base, cut), (base + cut as u64 + 4096, len - cut)];
            let range = offset as usize..offset as usize + len;
            let op = match dice.roll(10) {
                0..4 => {
                    let data: Vec<u8> = (0..len).map(|_| dice.roll(256) as u8).collect();
                    guest.fill(parts[0].0, &data[..cut]);
                    guest.fill(parts[1].0, &data[cut..]);
                    model[range].copy_from_slice(&data);
                    BlockOp::Write(guest.buffers(&parts))
                }
                4..7 => {
                    reads.push((id, parts, model[range].to_vec()));
                    BlockOp::Read(guest.buffers(&parts))
                }
                7 => {
                    model[range].fill(0);
                    BlockOp::WriteZeroes {
                        len: len as u64,
                        may_unmap: dice.roll(2) == 0,
                    }
                }
                8 => {
                    // On files, discarded bytes happen to read as zeroes.
                    model[range].fill(0);
                    BlockOp::Discard { len: len as u64 }
                }
                _ => BlockOp::Flush,
            };
            queue.submit(BlockRequest { id, offset, op });
        }
        assert_eq!(queue.in_flight(), 16);
        let done = drain(queue.as_mut());
        assert_eq!(done.len(), 16);
        for done in done {
            done.result
                .unwrap_or_else(|e| panic!("{label}: {}: {e}", done.id));
            if let Some((_, parts, expected)) = reads.iter().find(|r| r.0 == done.id) {
                let mut got = guest.bytes(parts[0].0, parts[0].1);
                got.extend(guest.bytes(parts[1].0, parts[1].1));
                assert!(got == *expected, "{label}: read {} differs", done.id);
                assert_eq!(
                    done.buffers.unwrap().len(),
                    expected.len(),
                    "buffers come back whole"
                );
            }
        }
    }
    assert!(
        std::fs::read(backend_path(&backend)).unwrap() == model,
        "{label}: image differs"
    );
}

fn backend_path(backend: &Raw) -> PathBuf {
    backend.describe().strip_prefix("raw file ").unwrap().into()
}

#[test]
fn every_engine_keeps_data_intact_on_a_disk() {
    for engine in ENGINES {
        let dir = scratch();
        let path = image(dir.path(), 8 << 20);
        compare_with_model(
            RawConfig {
                engine,
                ..RawConfig::new(path)
            },
            1,
        );
    }
}

#[test]
fn every_engine_keeps_data_intact_in_memory() {
    for engine in ENGINES {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = image(dir.path(), 8 << 20);
        compare_with_model(
            RawConfig {
                engine,
                ..RawConfig::new(path)
            },
            1,
        );
    }
}

#[test]
fn direct_io_bounces_what_is_not_aligned() {
    for engine in ENGINES {
        for align_memory in [1, 512, 4096] {
            let dir = scratch();
            let path = image(dir.path(), 8 << 20);
            let config = RawConfig {
                engine,
                direct: true,
                ..RawConfig::new(path)
            };
            match Raw::open(config.clone()) {
                // Where the build folder is on a file system without O_DIRECT.
                Err(e) => assert!(e.to_string().contains("set direct to false"), "{e}"),
                Ok(opened) => {
                    drop(opened);
                    compare_with_model(config, align_memory);
                }
            }
        }
    }
}

#[test]
fn four_kilobyte_blocks() {
    let dir = scratch();
    let path = image(dir.path(), 8 << 20);
    let config = RawConfig {
        block_size: Some(4096),
        ..RawConfig::new(path)
    };
    let geometry = Raw::open(config.clone()).unwrap().geometry();
    assert_eq!(
        (geometry.logical_block, geometry.physical_block),
        (4096, 4096)
    );
    compare_with_model(config, 1);
}

#[test]
fn more_buffers_than_one_system_call_takes() {
    for engine in ENGINES {
        let dir = scratch();
        let path = image(dir.path(), 4 << 20);
        let backend = Raw::open(RawConfig {
            engine,
            ..RawConfig::new(path.clone())
        })
        .unwrap();
        let mut queue = backend.open_queue().unwrap();
        let guest = Guest::new();
        // 3000 separate buffers of 512 bytes, every other one in memory.
        let parts: Vec<_> = (0..3000).map(|i| (i * 1024, 512)).collect();
        for (i, (at, _)) in parts.iter().enumerate() {
            guest.fill(*at, &[(i % 251) as u8 + 1; 512]);
        }
        let buffers = guest.buffers(&parts);
        assert_eq!(buffers.iovecs().len(), 3000);
        one(queue.as_mut(), 512, BlockOp::Write(buffers)).unwrap();
        let written = std::fs::read(&path).unwrap();
        for i in 0..3000 {
            let at = 512 + i * 512;
            assert!(
                written[at..at + 512]
                    .iter()
                    .all(|b| *b == (i % 251) as u8 + 1),
                "buffer {i}"
            );
        }
        for (at, _) in &parts {
            guest.fill(*at, &[0; 512]);
        }
        one(queue.as_mut(), 512, BlockOp::Read(guest.buffers(&parts))).unwrap();
        assert_eq!(guest.bytes(2999 * 1024, 512), [(2999 % 251) as u8 + 1; 512]);
    }
}

#[test]
fn more_requests_than_the_ring_has_room_for() {
    for engine in ENGINES {
        let dir = scratch();
        let path = image(dir.path(), 1 << 20);
        let backend = Raw::open(RawConfig {
            engine,
            ..RawConfig::new(path.clone())
        })
        .unwrap();
        let mut queue = backend.open_queue().unwrap();
        let guest = Guest::new();
        for id in 0..1000 {
            guest.fill(id * 1024, &[id as u8; 1024]);
            let op = BlockOp::Write(guest.buffers(&[(id * 1024, 1024)]));
            queue.submit(BlockRequest {
                id,
                offset: id * 1024,
                op,
            });
        }
        let mut ids: Vec<_> = drain(queue.as_mut())
            .into_iter()
            .map(|d| {
                d.result.unwrap();
                d.id
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..1000).collect::<Vec<_>>());
        let written = std::fs::read(&path).unwrap();
        assert!((0..1000).all(|i| written[i * 1024 + 1023] == i as u8));
    }
}

#[test]
fn what_lies_outside_is_refused_and_never_grows_the_file() {
    for engine in ENGINES {
        let dir = scratch();
        let path = image(dir.path(), 1 << 20);
        let backend = Raw::open(RawConfig {
            engine,
            ..RawConfig::new(path.clone())
        })
        .unwrap();
        let mut queue = backend.open_queue().unwrap();
        let guest = Guest::new();
        for offset in [(1 << 20) - 512, 1 << 20, u64::MAX - 511] {
            for op in [
                BlockOp::Write(guest.buffers(&[(0, 1024)])),
                BlockOp::Read(guest.buffers(&[(0, 1024)])),
                BlockOp::Discard { len: 1024 },
                BlockOp::WriteZeroes {
                    len: u64::MAX,
                    may_unmap: false,
                },
            ] {
                let error = one(queue.as_mut(), offset, op).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            }
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    }
}

#[test]
fn a_truncated_file_is_an_error_not_a_hang() {
    for engine in ENGINES {
        let dir = scratch();
        let path = image(dir.path(), 1 << 20);
        let backend = Raw::open(RawConfig {
            engine,
            ..RawConfig::new(path.clone())
        })
        .unwrap();
        let mut queue = backend.open_queue().unwrap();
        let guest = Guest::new();
        // Half of the second request's range is gone: a short read, then the end.
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(4096)
            .unwrap();
        one(
            queue.as_mut(),
            0,
            BlockOp::Read(guest.buffers(&[(0, 4096)])),
        )
        .unwrap();
        let error = one(
            queue.as_mut(),
            0,
            BlockOp::Read(guest.buffers(&[(0, 8192)])),
        )
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(backend.geometry().size, 4096, "the size follows the file");
    }
}

#[test]
fn a_read_only_medium_refuses_writes() {
    for engine in ENGINES {
        let dir = scratch();
        let path = image(dir.path(), 1 << 20);
        let config = RawConfig {
            engine,
            read_only: true,
            ..RawConfig::new(path)
        };
        let backend = Raw::open(config).unwrap();
        let geometry = backend.geometry();
        assert!(geometry.read_only && !geometry.discard && !geometry.write_zeroes);
        assert!(backend.describe().ends_with(", read-only"));
        let mut queue = backend.open_queue().unwrap();
        let guest = Guest::new();
        for op in [
            BlockOp::Write(guest.buffers(&[(0, 512)])),
            BlockOp::Discard { len: 512 },
            BlockOp::WriteZeroes {
                len: 512,
                may_unmap: true,
            },
        ] {
            let error = one(queue.as_mut(), 0, op).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        }
        one(queue.as_mut(), 0, BlockOp::Flush).unwrap();
        one(queue.as_mut(), 0, BlockOp::Read(guest.buffers(&[(0, 512)]))).unwrap();
    }
}

#[test]
fn discard_makes_holes_and_zeroing_keeps_or_frees_as_asked() {
    for engine in ENGINES {
        let dir = scratch();
        let path = image(dir.path(), 4 << 20);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&vec![0x5a; 4 << 20], 0)
            .unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        let blocks = || file.metadata().unwrap().blocks() * 512;
        let full = blocks();
        assert!(full >= 4 << 20);
        let backend = Raw::open(RawConfig {
            engine,
            ..RawConfig::new(path.clone())
        })
        .unwrap();
        let mut queue = backend.open_queue().unwrap();
        one(queue.as_mut(), 0, BlockOp::Discard { len: 1 << 20 }).unwrap();
        assert!(
            blocks() <= full - (1 << 20),
            "{engine:?}: discard freed nothing"
        );
        one(
            queue.as_mut(),
            1 << 20,
            BlockOp::WriteZeroes {
                len: 1 << 20,
                may_unmap: true,
            },
        )
        .unwrap();
        assert!(
            blocks() <= full - (2 << 20),
            "{engine:?}: zeroing freed nothing"
        );
        one(
            queue.as_mut(),
            2 << 20,
            BlockOp::WriteZeroes {
                len: 1 << 20,
                may_unmap: false,
            },
        )
        .unwrap();
        assert!(
            blocks() > full - (3 << 20),
            "{engine:?}: zeroing must keep the blocks"
        );
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[..3 << 20].iter().all(|b| *b == 0));
        assert!(bytes[3 << 20..].iter().all(|b| *b == 0x5a));
    }
}

#[test]
fn zeroes_are_written_where_the_file_system_cannot_make_them() {
    // tmpfs punches holes, but has no FALLOC_FL_ZERO_RANGE.
    for engine in ENGINES {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = image(dir.path(), 4 << 20);
        std::fs::write(&path, vec![0x5a; 4 << 20]).unwrap();
        let backend = Raw::open(RawConfig {
            engine,
            ..RawConfig::new(path.clone())
        })
        .unwrap();
        let mut queue = backend.open_queue().unwrap();
        let len = (3 << 20) - 512;
        for _ in 0..2 {
            one(
                queue.as_mut(),
                512,
                BlockOp::WriteZeroes {
                    len,
                    may_unmap: false,
                },
            )
            .unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[512..3 << 20].iter().all(|b| *b == 0));
        assert!(
            bytes[..512]
                .iter()
                .chain(&bytes[3 << 20..])
                .all(|b| *b == 0x5a)
        );
    }
}

#[test]
fn a_file_size_limit_fails_the_write_and_nothing_else() {
    // Beyond RLIMIT_FSIZE the kernel sends SIGXFSZ, which would kill. The limit is the process's, so
    // this runs in a process of its own.
    let Some(path) = std::env::var_os("NYX_BLOCK_TEST_LIMIT") else {
        let dir = scratch();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "tests::a_file_size_limit_fails_the_write_and_nothing_else",
            ])
            .env("NYX_BLOCK_TEST_LIMIT", image(dir.path(), 1 << 20))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&status.stdout);
        assert!(
            status.status.success() && text.contains("1 passed"),
            "{status:?}"
        );
        return;
    };
    for engine in ENGINES {
        let backend = Raw::open(RawConfig {
            engine,
            ..RawConfig::new(path.clone())
        })
        .unwrap();
        let mut queue = backend.open_queue().unwrap();
        let limit = libc::rlimit {
            rlim_cur: 64 << 10,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: `limit` is a valid rlimit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
        let guest = Guest::new();
        let write = || BlockOp::Write(guest.buffers(&[(0, 4096)]));
        let error = one(queue.as_mut(), 128 << 10, write()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG), "{engine:?}");
        one(queue.as_mut(), 0, write()).unwrap();
        one(
            queue.as_mut(),
            128 << 10,
            BlockOp::Read(guest.buffers(&[(0, 4096)])),
        )
        .unwrap();
    }
}

#[test]
fn a_full_disk_fails_the_write_and_later_ones_work() {
    let root = rustix::process::geteuid().is_root();
    let dir = scratch();
    let mounted = root && mount_tmpfs(dir.path());
    if !mounted {
        println!("skipped: mounting a small tmpfs needs root");
        return;
    }
    let path = image(dir.path(), 4 << 20);
    let outcome = std::panic::catch_unwind(|| {
        for engine in ENGINES {
            let backend = Raw::open(RawConfig {
                engine,
                ..RawConfig::new(path.clone())
            })
            .unwrap();
            let mut queue = backend.open_queue().unwrap();
            let guest = Guest::new();
            let write = |len| BlockOp::Write(guest.buffers(&[(0, len)]));
            let error = one(queue.as_mut(), 0, write(2 << 20)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{engine:?}");
            one(queue.as_mut(), 0, BlockOp::Discard { len: 4 << 20 }).unwrap();
            one(queue.as_mut(), 0, write(4096)).unwrap();
            one(queue.as_mut(), 0, BlockOp::Discard { len: 4 << 20 }).unwrap();
        }
    });
    let target = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    // SAFETY: the path is NUL-terminated.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    outcome.unwrap();
}

fn mount_tmpfs(at: &Path) -> bool {
    let target = std::ffi::CString::new(at.to_str().unwrap()).unwrap();
    // SAFETY: all strings are NUL-terminated.
    unsafe {
        let (fs, options) = (c"tmpfs".as_ptr(), c"size=1m".as_ptr());
        libc::mount(fs, target.as_ptr(), fs, 0, options.cast()) == 0
    }
}

#[test]
fn dropping_a_queue_waits_for_what_the_kernel_is_doing() {
    for (engine, direct) in [
        (Engine::IoUring, false),
        (Engine::IoUring, true),
        (Engine::Threads, false),
    ] {
        let dir = scratch();
        let path = image(dir.path(), 8 << 20);
        let Ok(backend) = Raw::open(RawConfig {
            engine,
            direct,
            ..RawConfig::new(path)
        }) else {
            continue;
        };
        for round in 0..20 {
            let guest = Guest::new();
            let mut queue = backend.open_queue().unwrap();
            for id in 0..64 {
                let parts = [(id * 65536, 65536)];
                let op = match id % 3 {
                    0 => BlockOp::Write(guest.buffers(&parts)),
                    1 => BlockOp::Read(guest.buffers(&parts)),
                    _ => BlockOp::Flush,
                };
                queue.submit(BlockRequest {
                    id,
                    offset: id * 65536,
                    op,
                });
            }
            if round % 2 == 0 {
                queue.kick().unwrap();
            }
            drop(queue);
            // Unmapped here: a late write by the kernel would hit memory that is gone.
            drop(guest);
        }
    }
}

#[test]
fn a_second_opener_is_refused_by_name() {
    let dir = scratch();
    let path = image(dir.path(), 1 << 20);
    let config = RawConfig::new(path.clone());
    let reader = RawConfig {
        read_only: true,
        ..config.clone()
    };
    let first = Raw::open(config.clone()).unwrap();
    for other in [&config, &reader] {
        let error = Raw::open(other.clone()).err().unwrap().to_string();
        let start = format!(
            "disk `{}` is in use by this virtual machine: ",
            path.display()
        );
        assert!(error.starts_with(&start), "{error}");
    }
    let unlocked = RawConfig {
        lock: Locking::Off,
        ..config.clone()
    };
    drop(Raw::open(unlocked).unwrap());
    drop(first);
    // Readers share, and keep writers out.
    let readers = [
        Raw::open(reader.clone()).unwrap(),
        Raw::open(reader).unwrap(),
    ];
    assert!(matches!(
        Raw::open(config.clone()),
        Err(OpenError::InUse {
            holder: Some(_),
            ..
        })
    ));
    drop(readers);
    Raw::open(config).unwrap();
}

#[test]
fn another_process_is_named_and_refused() {
    let Some(path) = std::env::var_os("NYX_BLOCK_TEST_HOLD") else {
        let dir = scratch();
        let path = image(dir.path(), 1 << 20);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "tests::another_process_is_named_and_refused",
                "--nocapture",
            ])
            .env("NYX_BLOCK_TEST_HOLD", &path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
        lines
            .find(|l| l.as_ref().unwrap().contains("holding"))
            .unwrap()
            .unwrap();
        let error = Raw::open(RawConfig::new(&path)).err().unwrap().to_string();
        assert!(
            error.contains(&format!("is in use by process {} (", child.id())),
            "{error}"
        );
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        Raw::open(RawConfig::new(&path)).unwrap();
        return;
    };
    let _held = Raw::open(RawConfig::new(path)).unwrap();
    println!("holding");
    io::Read::read(&mut io::stdin(), &mut [0]).unwrap();
}

#[test]
fn qemu_img_and_nyx_respect_each_other() {
    if std::process::Command::new("qemu-io")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("skipped: qemu-io (qemu-utils) is not installed");
        return;
    }
    let dir = scratch();
    let path = image(dir.path(), 1 << 20);
    let shown = path.to_str().unwrap();
    let qemu_io = |args: &[&str]| {
        let run = std::process::Command::new("qemu-io")
            .args(["-f", "raw"])
            .args(args)
            .output();
        run.unwrap().status.success()
    };
    let read = || qemu_io(&["-r", "-c", "read 0 512", shown]);
    let write = || qemu_io(&["-c", "write 0 512", shown]);
    assert!(read() && write());
    let writer = Raw::open(RawConfig::new(shown)).unwrap();
    assert!(!read() && !write(), "qemu ignores our writer's lock");
    drop(writer);
    let reader = Raw::open(RawConfig {
        read_only: true,
        ..RawConfig::new(shown)
    })
    .unwrap();
    assert!(read(), "readers share");
    assert!(!write(), "qemu ignores our reader's lock");
    drop(reader);
    // The other way round: qemu-io holds the image while its standard input is open.
    let mut held = std::process::Command::new("qemu-io")
        .args(["-f", "raw", shown])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let locked = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        Raw::open(RawConfig::new(shown)).is_err()
    });
    assert!(locked, "our writer ignores qemu's lock");
    let error = Raw::open(RawConfig {
        read_only: true,
        ..RawConfig::new(shown)
    })
    .err()
    .unwrap();
    assert!(
        error
            .to_string()
            .contains(&format!("process {} (qemu-io)", held.id())),
        "{error}"
    );
    drop(held.stdin.take());
    held.wait().unwrap();
    Raw::open(RawConfig::new(shown)).unwrap();
}

#[test]
fn bad_input_gets_one_sentence_with_the_mend() {
    let dir = scratch();
    let file = |name: &str, size: u64| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    };
    let error = |config: RawConfig| Raw::open(config).err().unwrap().to_string();
    let new = |path: PathBuf| RawConfig::new(path);
    let absent = dir.path().join("absent.img");
    let shown = absent.display().to_string();
    assert_eq!(
        error(new(absent)),
        format!(
            "disk `{shown}` does not exist: `truncate -s 10G {shown}` makes an empty one of 10 GiB"
        )
    );
    assert!(error(new(dir.path().into())).ends_with("is a directory: name an image file"));
    assert!(
        error(new("/dev/null".into())).ends_with("is neither a regular file nor a block device")
    );
    assert!(error(new(file("empty", 0))).contains("is empty: `truncate -s 10G "));
    let odd = file("odd", 1000);
    let text = error(new(odd.clone()));
    assert!(
        text.contains("has 1000 bytes, which is not a multiple of its 512-byte blocks"),
        "{text}"
    );
    assert!(text.contains("`truncate -s 1024 "), "{text}");
    let text = error(RawConfig {
        block_size: Some(4096),
        ..new(file("odd4k", 8192 + 512))
    });
    assert!(
        text.contains("8704 bytes, which is not a multiple of its 4096-byte")
            && text.contains("-s 12288"),
        "{text}"
    );
    let text = error(RawConfig {
        block_size: Some(1024),
        ..new(odd)
    });
    assert!(
        text.ends_with("block_size is 1024: use 512 or 4096"),
        "{text}"
    );
    // The refused image is not left locked.
    let spec = |config: &str| BackendSpec {
        kind: "raw".to_owned(),
        config: serde_json::from_str(config).unwrap(),
    };
    let error = |spec: &BackendSpec| open(spec).err().unwrap().to_string();
    let text = error(&spec(r#"{"path": "a", "readonly": true}"#));
    assert!(
        text.contains("unknown field `readonly`, expected one of `path`, `read_only`"),
        "{text}"
    );
    assert!(error(&spec("{}")).contains("missing field `path`"));
    let text = error(&BackendSpec {
        kind: "qcow2".to_owned(),
        config: serde_json::Value::Null,
    });
    assert_eq!(text, "`qcow2` is not a block backend: use raw");
}

#[test]
fn permissions_are_explained() {
    // Root may open anything: drop to another user in a child.
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to become somebody else");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let path = image(dir.path(), 1 << 20);
    let errors = std::thread::spawn(move || {
        // SAFETY: the raw system call changes the file-system uid of this thread only.
        unsafe { libc::syscall(libc::SYS_setfsuid, 65534) };
        let _ =
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600));
        let writer = Raw::open(RawConfig::new(&path))
            .err()
            .map(|e| e.to_string());
        let reader = Raw::open(RawConfig {
            read_only: true,
            ..RawConfig::new(&path)
        })
        .is_ok();
        (writer, reader)
    })
    .join()
    .unwrap();
    assert!(
        errors
            .0
            .unwrap()
            .contains("may not be read and written by this user: ")
    );
    assert!(errors.1, "the image is world-readable");
}

#[test]
fn descriptors_are_all_given_back() {
    let dir = scratch();
    let path = image(dir.path(), 1 << 20);
    let images_open = || {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == path))
            .count()
    };
    for engine in ENGINES {
        let backend = Raw::open(RawConfig {
            engine,
            ..RawConfig::new(&path)
        })
        .unwrap();
        let queues = [backend.open_queue().unwrap(), backend.open_queue().unwrap()];
        assert_eq!(images_open(), 1);
        drop(backend);
        assert!(
            matches!(
                Raw::open(RawConfig::new(&path)),
                Err(OpenError::InUse { .. })
            ),
            "queues keep the lock"
        );
        drop(queues);
        assert_eq!(images_open(), 0);
    }
    let failed = File::create(dir.path().join("odd")).unwrap();
    failed.set_len(1000).unwrap();
    let before = failed.as_raw_fd();
    drop(Raw::open(RawConfig::new(dir.path().join("odd"))));
    assert!(before > 0 && images_open() == 0);
}

#[test]
fn a_block_device_is_a_medium_too() {
    let dir = scratch();
    let path = image(dir.path(), 16 << 20);
    std::fs::write(&path, vec![0x5a; 16 << 20]).unwrap();
    let losetup = |args: &[&str]| std::process::Command::new("losetup").args(args).output();
    let device = match losetup(&["--find", "--show", path.to_str().unwrap()]) {
        Ok(done) if done.status.success() => String::from_utf8(done.stdout).unwrap(),
        other => {
            println!("skipped: a loop device needs root: {other:?}");
            return;
        }
    };
    let device = PathBuf::from(device.trim());
    let outcome = std::panic::catch_unwind(|| {
        for (engine, direct) in ENGINES.into_iter().flat_map(|e| [(e, false), (e, true)]) {
            let config = RawConfig {
                engine,
                direct,
                ..RawConfig::new(&device)
            };
            let backend = Raw::open(config.clone()).unwrap();
            let geometry = backend.geometry();
            assert_eq!((geometry.size, geometry.logical_block), (16 << 20, 512));
            assert!(geometry.discard && geometry.write_zeroes);
            assert_eq!(
                backend.describe(),
                format!("block device {}", device.display())
            );
            let error = Raw::open(config).err().unwrap().to_string();
            assert!(
                error.contains("is in use by this virtual machine: "),
                "{error}"
            );
            let mut queue = backend.open_queue().unwrap();
            let guest = Guest::new();
            guest.fill(0x333, &[7; 8192]);
            one(
                queue.as_mut(),
                4096,
                BlockOp::Write(guest.buffers(&[(0x333, 8192)])),
            )
            .unwrap();
            one(queue.as_mut(), 0, BlockOp::Flush).unwrap();
            one(
                queue.as_mut(),
                8192,
                BlockOp::WriteZeroes {
                    len: 512,
                    may_unmap: false,
                },
            )
            .unwrap();
            one(
                queue.as_mut(),
                8704,
                BlockOp::WriteZeroes {
                    len: 512,
                    may_unmap: true,
                },
            )
            .unwrap();
            one(queue.as_mut(), 1 << 20, BlockOp::Discard { len: 1 << 20 }).unwrap();
            one(
                queue.as_mut(),
                4096,
                BlockOp::Read(guest.buffers(&[(0x10_0111, 8192)])),
            )
            .unwrap();
            let expected = [[7; 4096].as_slice(), &[0; 1024], &[7; 3072]].concat();
            assert!(
                guest.bytes(0x10_0111, 8192) == expected,
                "{engine:?} direct={direct}"
            );
        }
    });
    losetup(&["--detach", device.to_str().unwrap()]).unwrap();
    outcome.unwrap();
}

#[test]
fn a_queue_outlives_the_thread_that_submitted_to_it() {
    let dir = scratch();
    let path = image(dir.path(), 8 << 20);
    for engine in ENGINES {
        let backend = Raw::open(RawConfig {
            engine,
            ..RawConfig::new(&path)
        })
        .unwrap();
        let guest = Guest::new();
        let mut queue = backend.open_queue().unwrap();
        let requests: Vec<_> = (0..64)
            .map(|id| {
                let parts = [(id * 65536, 65536)];
                guest.fill(parts[0].0, &[id as u8 + 1; 65536]);
                let op = BlockOp::Write(guest.buffers(&parts));
                BlockRequest {
                    id,
                    offset: id * 65536,
                    op,
                }
            })
            .collect();
        let submitter = std::thread::spawn(move || {
            requests
                .into_iter()
                .for_each(|request| queue.submit(request));
            queue.kick().unwrap();
            queue
        });
        let mut queue = submitter.join().unwrap();
        let done = drain(queue.as_mut());
        assert_eq!(done.len(), 64);
        done.into_iter().for_each(|done| done.result.unwrap());
        let written = std::fs::read(&path).unwrap();
        assert!(
            (0..64).all(|id| written[id * 65536 + 65535] == id as u8 + 1),
            "{engine:?}"
        );
    }
}

#[test]
fn short_and_interrupted_system_calls_are_continued() {
    use crate::transfer::{Step, Task};
    use nyx_memory::Iovec;
    for direct in [false, true] {
        let dir = scratch();
        let path = image(dir.path(), 1 << 20);
        let Ok(raw) = Raw::open(RawConfig {
            direct,
            ..RawConfig::new(&path)
        }) else {
            continue;
        };
        let (guest, mut dice) = (Guest::new(), Dice(99));
        let unit = if direct { 512 } else { 1 };
        let data: Vec<u8> = (0..64 << 10).map(|i| (i % 249) as u8).collect();
        let parts = [(0x1_0000, 5000), (0x3_0007, (64 << 10) - 5000)];
        // Carries a request out with calls that transfer a random part of what was asked for.
        let mut carry_out = |op| {
            let request = BlockRequest {
                id: 1,
                offset: 4096,
                op,
            };
            let mut task = Task::new(request, &raw.medium).ok().unwrap();
            let mut calls = 0;
            loop {
                calls += 1;
                let mut cut = |iovecs: &[Iovec]| {
                    let whole: usize = iovecs.iter().map(|v| v.len).sum();
                    let mut left = (1 + dice.roll(whole as u64 / unit) * unit) as usize;
                    left = left.next_multiple_of(unit as usize).min(whole);
                    let mut list = Vec::new();
                    for v in iovecs {
                        let len = v.len.min(left);
                        left -= len;
                        list.push(Iovec { base: v.base, len });
                    }
                    list
                };
                let result = if calls % 3 == 0 {
                    [-libc::EINTR, -libc::EAGAIN, -libc::ECANCELED][calls / 3 % 3]
                } else {
                    match task.step(&raw.medium) {
                        Step::Read { iovecs, offset } => {
                            let iovecs = cut(iovecs);
                            sync::perform(
                                &Step::Read {
                                    iovecs: &iovecs,
                                    offset,
                                },
                                &raw.medium,
                                0,
                            )
                        }
                        Step::Write { iovecs, offset } => {
                            let iovecs = cut(iovecs);
                            sync::perform(
                                &Step::Write {
                                    iovecs: &iovecs,
                                    offset,
                                },
                                &raw.medium,
                                0,
                            )
                        }
                        other => sync::perform(&other, &raw.medium, 0),
                    }
                };
                if let Some(result) = task.advance(result, &raw.medium) {
                    break (calls, task.finish(result));
                }
            }
        };
        for round in 0..20 {
            guest.fill(parts[0].0, &data[..5000]);
            guest.fill(parts[1].0, &data[5000..]);
            let (calls, done) = carry_out(BlockOp::Write(guest.buffers(&parts)));
            done.result.unwrap();
            assert!(
                std::fs::read(&path).unwrap()[4096..][..64 << 10] == data,
                "round {round}"
            );
            parts
                .iter()
                .for_each(|(at, len)| guest.fill(*at, &vec![0; *len]));
            let (more, done) = carry_out(BlockOp::Read(guest.buffers(&parts)));
            done.result.unwrap();
            let got = [
                guest.bytes(parts[0].0, 5000),
                guest.bytes(parts[1].0, (64 << 10) - 5000),
            ];
            assert!(got.concat() == data, "round {round}");
            assert!(calls + more > 4, "nothing was cut");
        }
        // A call that says "again" for ever ends as an error.
        let op = BlockOp::Write(guest.buffers(&parts));
        let request = BlockRequest {
            id: 1,
            offset: 0,
            op,
        };
        let mut task = Task::new(request, &raw.medium).ok().unwrap();
        let end = (0..1000).find_map(|_| task.advance(-libc::EAGAIN, &raw.medium));
        assert_eq!(end.unwrap().unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    }
}

#[test]
fn a_host_that_refuses_io_uring_gets_threads() {
    let dir = scratch();
    let path = image(dir.path(), 4 << 20);
    // A seccomp filter (seccomp(2)) like those of container runtimes, on a thread of its own.
    let sandboxed = std::thread::spawn(move || {
        let statement = |code: u32, jf, k| libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf,
            k,
        };
        let filter = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            statement(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                1,
                libc::SYS_io_uring_setup as u32,
            ),
            statement(
                libc::BPF_RET | libc::BPF_K,
                0,
                libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
            ),
            statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog {
            len: 4,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the program is valid and only read; both calls concern this thread only.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            assert_eq!(
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program),
                0
            );
        }
        let config = RawConfig {
            engine: Engine::IoUring,
            ..RawConfig::new(&path)
        };
        let error = Raw::open(config).err().unwrap().to_string();
        assert!(
            error.contains("engine is io_uring: this host refuses it ("),
            "{error}"
        );
        assert!(error.ends_with("use auto or threads"), "{error}");
        compare_with_model(RawConfig::new(&path), 1);
    });
    sandboxed.join().unwrap();
}
