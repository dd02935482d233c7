//! Address decoding.

use crate::{Hit, RegionId, Target};
use arc_swap::{ArcSwap, Cache};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

#[derive(Clone)]
struct Window {
    base: u64,
    last: u64,
    region: RegionId,
    target: Arc<dyn Target>,
}

/// Two windows want the same addresses.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{new} at {base:#x} overlaps {existing}")]
pub struct Conflict {
    new: String,
    existing: String,
    base: u64,
}

/// An address space: port I/O or memory-mapped I/O.
///
/// Lookups are wait-free (the table is replaced, never edited), so vCPUs do not contend with each
/// other or with a BAR being moved. Unclaimed addresses read all-ones and ignore writes. An access
/// that runs past the end of a window is split there, as a bus bridge would.
#[derive(Clone, Default)]
pub struct Bus {
    table: Arc<ArcSwap<Vec<Window>>>,
    edit: Arc<Mutex<()>>,
    claims: Arc<Mutex<Vec<Claim>>>,
}

/// Addresses at which something is kept: first, last, and how to let go of it.
struct Claim {
    base: u64,
    last: u64,
    kept: Weak<dyn LetGo>,
}

trait LetGo: Send + Sync {
    fn let_go(&self);
}
impl<T: Send> LetGo for Mutex<Option<T>> {
    fn let_go(&self) {
        let kept = self.lock().take();
        drop(kept);
    }
}

/// Something kept for addresses that nobody decodes for the time being, such as the doorbells of a
/// window that is switched off. It is dropped as soon as another window takes any of them.
pub struct Kept<T>(Arc<Mutex<Option<T>>>);

impl<T> Kept<T> {
    /// Takes it back, if it is still there.
    pub fn take(self) -> Option<T> {
        self.0.lock().take()
    }
}

/// A mapped window. Dropping it unmaps.
#[must_use = "dropping a mapping unmaps it"]
pub struct Mapping {
    bus: Bus,
    base: u64,
}

impl Bus {
    /// Maps `len` bytes at `base` to window `region` of `target`. A window that is empty or wraps
    /// around the address space conflicts with itself.
    pub fn map(
        &self,
        base: u64,
        len: u64,
        region: RegionId,
        target: Arc<dyn Target>,
    ) -> Result<Mapping, Conflict> {
        let conflict = |existing: &str| Conflict {
            new: target.name().into(),
            existing: existing.into(),
            base,
        };
        let last = len
            .checked_sub(1)
            .and_then(|len| base.checked_add(len))
            .ok_or_else(|| conflict("the end of the address space"))?;
        let _edit = self.edit.lock();
        let mut table = self.table.load().as_ref().clone();
        let at = table.partition_point(|w| w.last < base);
        if let Some(next) = table.get(at).filter(|w| w.base <= last) {
            return Err(conflict(next.target.name()));
        }
        table.insert(
            at,
            Window {
                base,
                last,
                region,
                target,
            },
        );
        self.table.store(Arc::new(table));
        self.evict(base, last);
        Ok(Mapping {
            bus: self.clone(),
            base,
        })
    }

    /// Keeps `thing` for the `len` bytes at `base` until it is taken back or any of them is mapped.
    pub fn keep<T: Send + 'static>(&self, base: u64, len: u64, thing: T) -> Kept<T> {
        let kept = Arc::new(Mutex::new(Some(thing)));
        let last = base.saturating_add(len.saturating_sub(1));
        let erased: Arc<dyn LetGo> = kept.clone();
        let mut claims = self.claims.lock();
        claims.retain(|claim| claim.kept.strong_count() > 0);
        claims.push(Claim {
            base,
            last,
            kept: Arc::downgrade(&erased),
        });
        Kept(kept)
    }

    /// Lets go of everything kept between `base` and `last`.
    fn evict(&self, base: u64, last: u64) {
        let mut claims = self.claims.lock();
        let overlaps = |claim: &mut Claim| claim.base <= last && claim.last >= base;
        let evicted: Vec<_> = claims.extract_if(.., overlaps).collect();
        drop(claims);
        for claim in evicted {
            if let Some(kept) = claim.kept.upgrade() {
                kept.let_go();
            }
        }
    }

    /// The bus as one thread sees it, for those who use it all the time.
    pub fn view(&self) -> BusView {
        BusView(Cache::new(self.table.clone()))
    }

    /// Dispatches a read.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        read(&self.table.load(), addr, data);
    }

    /// Dispatches a write.
    pub fn write(&self, addr: u64, data: &[u8]) {
        write(&self.table.load(), addr, data);
    }

    /// Every window: base, last byte, owner.
    pub fn windows(&self) -> Vec<(u64, u64, String)> {
        let table = self.table.load();
        table
            .iter()
            .map(|w| (w.base, w.last, w.target.name().into()))
            .collect()
    }
}

/// A [`Bus`] with the table at hand: as long as no window moves, an access costs one comparison
/// instead of the bookkeeping of a shared one.
///
/// The table seen last is kept until the next access, and so are the targets in it. A unit that left
/// is not among what that keeps alive: it was taken out of its slot.
pub struct BusView(Cache<Arc<ArcSwap<Vec<Window>>>, Arc<Vec<Window>>>);

impl BusView {
    /// Dispatches a read.
    #[inline]
    pub fn read(&mut self, addr: u64, data: &mut [u8]) {
        read(self.0.load(), addr, data);
    }

    /// Dispatches a write.
    #[inline]
    pub fn write(&mut self, addr: u64, data: &[u8]) {
        write(self.0.load(), addr, data);
    }
}

/// The window that `addr` is in.
#[inline]
fn find(table: &[Window], addr: u64) -> Option<&Window> {
    let at = table.partition_point(|w| w.last < addr);
    table.get(at).filter(|w| w.base <= addr)
}

/// Bytes in the window from `addr` on, beyond the first.
#[inline]
fn room(window: &Window, addr: u64) -> usize {
    usize::try_from(window.last - addr).unwrap_or(usize::MAX)
}

/// What nobody's register reads. The common widths are stored in place: a call into the C library for
/// one byte touches pages that a vCPU's loop has no other use for.
#[inline]
fn all_ones(data: &mut [u8]) {
    if let Ok(data) = <&mut [u8; 1]>::try_from(&mut *data) {
        *data = [0xff; 1];
    } else if let Ok(data) = <&mut [u8; 2]>::try_from(&mut *data) {
        *data = [0xff; 2];
    } else if let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data) {
        *data = [0xff; 4];
    } else {
        data.fill(0xff);
    }
}

fn read(table: &[Window], addr: u64, data: &mut [u8]) {
    let Some(window) = find(table, addr) else {
        return all_ones(data);
    };
    let hit = Hit {
        region: window.region,
        offset: addr - window.base,
    };
    let room = room(window, addr);
    if data.len() <= room.saturating_add(1) {
        window.target.read(hit, data);
    } else {
        let (head, tail) = data.split_at_mut(room + 1);
        window.target.read(hit, head);
        read(table, addr.wrapping_add(head.len() as u64), tail);
    }
}

fn write(table: &[Window], addr: u64, data: &[u8]) {
    let Some(window) = find(table, addr) else {
        return;
    };
    let hit = Hit {
        region: window.region,
        offset: addr - window.base,
    };
    let room = room(window, addr);
    if data.len() <= room.saturating_add(1) {
        window.target.write(hit, data);
    } else {
        let (head, tail) = data.split_at(room + 1);
        window.target.write(hit, head);
        write(table, addr.wrapping_add(head.len() as u64), tail);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _edit = self.bus.edit.lock();
        let mut table = self.bus.table.load().as_ref().clone();
        table.retain(|w| w.base != self.base);
        self.bus.table.store(Arc::new(table));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(&'static str, Mutex<Vec<(u64, Vec<u8>)>>);
    impl Target for Echo {
        fn read(&self, at: Hit, data: &mut [u8]) {
            data.fill(at.offset as u8);
        }
        fn write(&self, at: Hit, data: &[u8]) {
            self.1.lock().push((at.offset, data.to_vec()));
        }
        fn name(&self) -> &str {
            self.0
        }
    }
    fn echo(name: &'static str) -> Arc<Echo> {
        Arc::new(Echo(name, Mutex::default()))
    }

    #[test]
    fn routes_by_window_and_forgets_on_drop() {
        let bus = Bus::default();
        let mapping = bus.map(0x1000, 0x10, RegionId(0), echo("a")).unwrap();
        let mut b = [0];
        bus.read(0x1004, &mut b);
        assert_eq!(b, [4]);
        bus.read(0x1010, &mut b);
        assert_eq!(b, [0xff]);
        drop(mapping);
        bus.read(0x1004, &mut b);
        assert_eq!(b, [0xff]);
    }

    #[test]
    fn a_view_follows_the_bus() {
        let bus = Bus::default();
        let mut view = bus.view();
        let mut b = [0];
        view.read(0x1004, &mut b);
        assert_eq!(b, [0xff]);
        let target = echo("a");
        let mapping = bus.map(0x1000, 0x10, RegionId(0), target.clone()).unwrap();
        view.read(0x1004, &mut b);
        assert_eq!(b, [4]);
        view.write(0x100f, &[1, 2]);
        assert_eq!(*target.1.lock(), [(0xf, vec![1])]);
        drop(mapping);
        view.read(0x1004, &mut b);
        assert_eq!(b, [0xff]);
    }

    #[test]
    fn an_access_over_the_edge_is_split() {
        let bus = Bus::default();
        let (a, b) = (echo("a"), echo("b"));
        let _a = bus.map(0x10, 0x10, RegionId(0), a.clone()).unwrap();
        let _b = bus.map(0x20, 0x10, RegionId(0), b.clone()).unwrap();
        bus.write(0x1e, &[1, 2, 3, 4]);
        assert_eq!(*a.1.lock(), [(0xe, vec![1, 2])]);
        assert_eq!(*b.1.lock(), [(0, vec![3, 4])]);
        let mut data = [0; 4];
        bus.read(0x2e, &mut data);
        assert_eq!(data, [0xe, 0xe, 0xff, 0xff]);
    }

    #[test]
    fn what_is_kept_goes_when_its_addresses_are_taken() {
        let bus = Bus::default();
        let thing = Arc::new(());
        let kept = bus.keep(0x1000, 0x10, thing.clone());
        let _before = bus.map(0xff0, 0x10, RegionId(0), echo("before")).unwrap();
        let _behind = bus.map(0x1010, 0x10, RegionId(0), echo("behind")).unwrap();
        assert_eq!(Arc::strong_count(&thing), 2);
        assert!(kept.take().is_some());
        let kept = bus.keep(0x1000, 0x10, thing.clone());
        let _over = bus.map(0x100f, 1, RegionId(0), echo("over")).unwrap();
        assert_eq!(Arc::strong_count(&thing), 1);
        assert!(kept.take().is_none());
    }

    #[test]
    fn conflicts_name_both_parties() {
        let bus = Bus::default();
        let _a = bus.map(0x10, 0x10, RegionId(0), echo("a")).unwrap();
        let overlap = bus.map(0x1f, 1, RegionId(0), echo("b")).err().unwrap();
        assert_eq!(overlap.to_string(), "b at 0x1f overlaps a");
        assert!(bus.map(u64::MAX, 2, RegionId(0), echo("c")).is_err());
        assert!(bus.map(0, 0, RegionId(0), echo("c")).is_err());
        let _top = bus.map(u64::MAX, 1, RegionId(0), echo("top")).unwrap();
        let mut two = [0; 2];
        bus.read(u64::MAX, &mut two);
        assert_eq!(two, [0, 0xff]);
    }
}
