//! The register block.

use super::saved::SavedPm;
use super::{GPE0, PM_TIMER, PM1_CONTROL, PM1_EVENT, S5_TYPE};
use crate::ports::{read_each, write_each};
use nyx_device::{
    AccessResult, Device, Drain, GeneralEvents, Hit, IrqLine, Lifecycle, PowerButton, PowerPort,
    PowerRequest, Registers, ResetKind, Timer, VmClock,
};
use nyx_inspect::{Counter, Inspect};
use nyx_state::{Persist, RestoreError, SaveError};
use std::sync::Arc;
use std::time::Duration;

/// The PM timer's frequency in hertz (ACPI 6.5 §4.8.3.3).
const FREQUENCY: u128 = 3_579_545;
const NANOSECONDS: u128 = 1_000_000_000;

/// PM1 status and enable: the timer's most significant bit changed (§4.8.3.1.1).
const TIMER: u16 = 1 << 0;
/// PM1 status and enable: global lock released.
const GLOBAL: u16 = 1 << 5;
/// PM1 status and enable: power button.
const POWER_BUTTON: u16 = 1 << 8;
/// PM1 status and enable: sleep button.
const SLEEP_BUTTON: u16 = 1 << 9;
/// PM1 status and enable: RTC alarm.
const RTC: u16 = 1 << 10;
/// The events that raise an SCI.
pub(super) const EVENTS: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;

/// PM1 control: events raise SCIs. Always set.
const SCI_EN: u16 = 1 << 0;
/// PM1 control: bus master requests break C3. Kept, without meaning here.
const BUS_MASTER_RELOAD: u16 = 1 << 1;
/// PM1 control: the sleep type.
const SLEEP_TYPE: u16 = 7 << 10;
/// PM1 control: go to sleep. Reads as zero.
const SLEEP_ENABLE: u16 = 1 << 13;
/// The bits of the control register that are kept.
pub(super) const CONTROL_KEPT: u16 = BUS_MASTER_RELOAD | SLEEP_TYPE;

/// The fixed hardware.
#[derive(Inspect)]
#[inspect(prefix = "pm")]
pub struct Pm {
    // Wiring
    #[inspect(skip)]
    sci: IrqLine,
    #[inspect(skip)]
    clock: VmClock,
    #[inspect(skip)]
    overflow: Timer,
    #[inspect(skip)]
    power: PowerPort,
    #[inspect(skip)]
    button: Option<Arc<PowerButton>>,
    #[inspect(skip)]
    events: Option<Arc<GeneralEvents>>,
    running: bool,
    /// Just restored, perhaps before the clock: what the timer did until then is history.
    restored: bool,
    // State
    #[inspect(hex)]
    status: u16,
    #[inspect(hex)]
    enable: u16,
    #[inspect(hex)]
    control: u16,
    #[inspect(hex)]
    gpe_status: u32,
    #[inspect(hex)]
    gpe_enable: u32,
    /// Changes of the timer's top bit that the status has taken in.
    seen_changes: u64,
    // Statistics
    /// Times the power button was pressed.
    button_presses: Counter,
    /// Wraps of the power-management timer that the guest asked to hear of.
    timer_overflows: Counter,
    /// Times the guest asked to sleep or to switch off.
    sleeps: Counter,
}

impl Pm {
    /// The block in its reset state. `overflow` wakes it; `button`, if any, is its power button, and
    /// `events` are where general purpose events come from.
    pub fn new(
        sci: IrqLine,
        clock: VmClock,
        overflow: Timer,
        power: PowerPort,
        button: Option<Arc<PowerButton>>,
        events: Option<Arc<GeneralEvents>>,
    ) -> Self {
        Self {
            sci,
            clock,
            overflow,
            power,
            button,
            events,
            running: false,
            restored: false,
            status: 0,
            enable: 0,
            control: 0,
            gpe_status: 0,
            gpe_enable: 0,
            seen_changes: 0,
            button_presses: Counter::default(),
            timer_overflows: Counter::default(),
            sleeps: Counter::default(),
        }
    }

    /// The user presses the power button. Normally this comes through [`PowerButton`].
    pub fn press_power_button(&mut self) {
        self.button_presses.inc();
        self.status |= POWER_BUTTON;
        self.drive();
    }

    /// General purpose event `number` (0 to 31) happens.
    pub fn raise_event(&mut self, number: u8) {
        self.gpe_status |= 1u32.checked_shl(number.into()).unwrap_or(0);
        self.drive();
    }

    fn ticks(&self) -> u128 {
        self.clock.now().as_nanos() * FREQUENCY / NANOSECONDS
    }

    /// How often the timer's top bit, bit 31, has changed since power-on.
    fn changes(&self) -> u64 {
        u64::try_from(self.ticks() >> 31).unwrap_or(u64::MAX)
    }

    /// The status with what the timer did since anyone looked.
    fn present_status(&self) -> u16 {
        let changed = !self.restored && self.changes() != self.seen_changes;
        self.status | if changed { TIMER } else { 0 }
    }

    /// Takes the timer into account, drives the SCI and arms the host timer if anyone waits.
    fn evaluate(&mut self) {
        let changes = self.changes();
        if std::mem::take(&mut self.restored) {
            self.seen_changes = changes;
        }
        if changes != self.seen_changes {
            self.seen_changes = changes;
            self.status |= TIMER;
            self.timer_overflows.inc();
        }
        if self.enable & TIMER != 0 {
            // Rounded up, so that the bit has changed when the timer fires.
            let ticks = (u128::from(changes) + 1) << 31;
            let nanoseconds = (ticks * NANOSECONDS).div_ceil(FREQUENCY);
            let deadline = u64::try_from(nanoseconds).map_or(Duration::MAX, Duration::from_nanos);
            self.overflow.arm(deadline);
        } else {
            self.overflow.disarm();
        }
        self.drive();
    }

    fn drive(&self) {
        let fixed = self.status & self.enable & EVENTS != 0;
        self.sci
            .set(fixed || self.gpe_status & self.gpe_enable != 0);
    }

    fn take_press(&mut self) {
        if self
            .button
            .as_ref()
            .is_some_and(|button| button.take_press())
        {
            self.press_power_button();
        }
    }

    /// Latches what was raised. The status is state of the machine like any other, so it does not
    /// wait for a pause to end; the SCI does.
    fn take_events(&mut self) {
        if let Some(events) = &self.events {
            self.gpe_status |= events.take();
        }
    }

    fn sleep(&mut self) {
        self.sleeps.inc();
        if (self.control & SLEEP_TYPE) >> 10 == u16::from(S5_TYPE) {
            self.power.request(PowerRequest::Off);
        }
    }

    /// The byte at `offset`; `ticks` was read once for the whole access.
    fn byte(&self, offset: u64, ticks: u128) -> Option<u8> {
        let part = |bytes: &[u8], base: u16| {
            let at = offset
                .checked_sub(base.into())
                .and_then(|at| usize::try_from(at).ok())?;
            bytes.get(at).copied()
        };
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        let control = (self.control | SCI_EN).to_le_bytes();
        let timer = (ticks as u32).to_le_bytes();
        part(&[s0, s1, e0, e1], PM1_EVENT)
            .or_else(|| part(&control, PM1_CONTROL))
            .or_else(|| part(&timer, PM_TIMER))
            .or_else(|| part(&self.gpe_status.to_le_bytes(), GPE0))
            .or_else(|| part(&self.gpe_enable.to_le_bytes(), GPE0 + 4))
    }

    fn write_byte(&mut self, offset: u64, value: u8) -> bool {
        let Ok(offset) = u16::try_from(offset) else {
            return false;
        };
        // `value` in the register of two or four bytes that it belongs to.
        let two = |base: u16| u16::from(value) << (8 * (offset - base));
        let keep_two = |base: u16| !(0xff << (8 * (offset - base)));
        let four = |base: u16| u32::from(value) << (8 * (offset - base));
        let keep_four = |base: u16| !(0xff << (8 * (offset - base)));
        match offset {
            // §4.8.3.1.1: writing one clears.
            0..=1 => self.status &= !two(0),
            2..=3 => self.enable = (self.enable & keep_two(2) | two(2)) & EVENTS,
            4..=5 => {
                let written = two(PM1_CONTROL);
                let kept = self.control & keep_two(PM1_CONTROL);
                self.control = (kept | written) & CONTROL_KEPT;
                if written & SLEEP_ENABLE != 0 {
                    self.sleep();
                }
            }
            // The timer is read-only.
            8..=11 => {}
            0x20..=0x23 => self.gpe_status &= !four(GPE0),
            0x24..=0x27 => {
                self.gpe_enable = self.gpe_enable & keep_four(GPE0 + 4) | four(GPE0 + 4);
            }
            _ => return false,
        }
        true
    }
}

impl Registers for Pm {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        if at.offset < u64::from(PM1_CONTROL) {
            self.evaluate();
        }
        let ticks = self.ticks();
        read_each(at.offset, data, |offset| self.byte(offset, ticks))
    }

    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        self.evaluate();
        let result = write_each(at.offset, data, |offset, value| {
            self.write_byte(offset, value)
        });
        self.evaluate();
        result
    }
}

impl Lifecycle for Pm {
    fn start(&mut self) {
        self.running = true;
        self.take_press();
        self.evaluate();
    }

    fn stop(&mut self) -> Drain {
        self.running = false;
        Drain::idle()
    }

    fn reset(&mut self, _: ResetKind) {
        let Self {
            sci: _,
            clock: _,
            overflow: _,
            power: _,
            button: _,
            events: _,
            running: _,
            restored,
            status,
            enable,
            control,
            gpe_status,
            gpe_enable,
            seen_changes: _,
            button_presses: _,
            timer_overflows: _,
            sleeps: _,
        } = self;
        for register in [status, enable, control] {
            *register = 0;
        }
        (*gpe_status, *gpe_enable) = (0, 0);
        *restored = true;
        self.evaluate();
    }

    fn wake(&mut self) {
        self.take_events();
        // A press while the machine is paused waits for it to go on.
        if self.running {
            self.take_press();
            self.evaluate();
        }
    }
}

impl Persist for Pm {
    type Saved = SavedPm;

    fn save(&self) -> Result<SavedPm, SaveError> {
        let Self {
            sci: _,
            clock: _,
            overflow: _,
            power: _,
            button: _,
            events: _,
            running: _,
            restored: _,
            status: _,
            enable,
            control,
            gpe_status,
            gpe_enable,
            seen_changes: _,
            button_presses: _,
            timer_overflows: _,
            sleeps: _,
        } = self;
        Ok(SavedPm {
            status: self.present_status(),
            enable: *enable,
            control: *control,
            gpe_status: *gpe_status,
            gpe_enable: *gpe_enable,
        })
    }

    fn restore(&mut self, saved: SavedPm) -> Result<(), RestoreError> {
        let SavedPm {
            status,
            enable,
            control,
            gpe_status,
            gpe_enable,
        } = saved;
        if (status | enable) & !EVENTS != 0 {
            return Err(RestoreError::Invalid("there is no such fixed event"));
        }
        if control & !CONTROL_KEPT != 0 {
            return Err(RestoreError::Invalid("PM1 control has unknown bits"));
        }
        self.status = status;
        self.enable = enable;
        self.control = control;
        self.gpe_status = gpe_status;
        self.gpe_enable = gpe_enable;
        self.restored = true;
        self.overflow.disarm();
        self.drive();
        Ok(())
    }
}

impl Device for Pm {}
