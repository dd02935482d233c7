//! Networks, from the guest's side and from the host's.

use crate::look::{Finding, Look};
use crate::scene::{Answer, Device, Interface, NeighbourState};
use crate::stages::Stage;
use crate::text::Line;

pub(super) fn wait_endless(look: &Look<'_>) -> Option<Finding> {
    const UNIT: &str = "Wait for Network to be Configured";
    const OTHER: &str = "Network Manager Wait Online";
    let about: Vec<&Line> = look.any_of(&[UNIT, OTHER, "wait-online.service"]).collect();
    let failed = about.iter().find(|line| {
        line.text.contains("Failed to start") || line.text.contains("Timeout occurred")
    });
    if let Some(line) = failed {
        return Some(Finding::certain().line(look, line));
    }
    let started = about.iter().find(|line| {
        line.text.contains("start job is running") || line.text.contains("Starting")
    })?;
    let is_done = about
        .iter()
        .any(|line| line.text.contains("Finished") || line.text.contains("Started"))
        || look
            .first(&["Reached target", "Network is Online"])
            .is_some()
        || look.has_reached(Stage::Userland);
    // The job's own line counts seconds: it is still being repeated.
    let is_repeated = started.text.contains("start job is running");
    if is_done || !(is_repeated || look.has_stuck_for(10_000)) {
        return None;
    }
    let last = about.last().copied().unwrap_or(started);
    Some(Finding::likely().line(look, last))
}

pub(super) fn ip_ignored(look: &Look<'_>) -> Option<Finding> {
    let value = look.option("ip")?;
    if look.first(&["IP-Config: "]).is_some() || matches!(value, "off" | "none") {
        return None;
    }
    let finding = |finding: Finding| finding.fact("machine", &format!("ip={value}"));
    // Linux 5.14 and later list what nobody in the kernel understood.
    let unknown = look
        .all(&["Unknown kernel command line parameters"])
        .find(|line| {
            line.text
                .split(['"', ' '])
                .any(|word| word.starts_with("ip="))
        });
    if let Some(line) = unknown {
        return Some(finding(Finding::certain().line(look, line)));
    }
    // The kernel configures addresses before it looks for its root; a quiet one does not say so.
    let is_past = look.stages.contains(&Stage::Kernel) && look.has_reached(Stage::Initramfs);
    is_past.then(|| {
        finding(Finding::possible()).fact("guest", "the kernel never said IP-Config: Complete")
    })
}

/// Whether the guest names an interface that a driver made.
fn names_interface(look: &Look<'_>) -> bool {
    look.first_of(&[
        "virtio_net virtio",
        ": renamed from eth0",
        "eth0: link",
        "eth0: carrier",
        "IPv6: ADDRCONF",
        "enp0s",
        "ens3: ",
    ])
    .is_some()
}

fn about(device: &Device) -> String {
    match &device.host {
        Some(host) => format!("{} ({host})", device.name),
        None => device.name.clone(),
    }
}

/// What programs say that look for a network interface which is not there: busybox, iproute2, ifupdown, dhclient.
const ABSENT: &[&[&str]] = &[
    &["SIOCGIFFLAGS: No such device"],
    &["SIOCGIFINDEX", "No such device"],
    &["SIOCSIFADDR: No such device"],
    &["Cannot find device \"e"],
    &["can't find device 'e"],
    &["No broadcast interfaces found"],
    &["interface eth0 does not exist"],
];

pub(super) fn driver_missing(look: &Look<'_>) -> Option<Finding> {
    look.devices("virtio-net").next()?;
    if names_interface(look) {
        return None;
    }
    let idle: Vec<String> = look
        .devices("virtio-net")
        .filter(|net| net.activations == Some(0))
        .map(|net| format!("no driver took {} (DRIVER_OK was never set)", about(net)))
        .collect();
    if !idle.is_empty() && (look.has_reached(Stage::Init) || look.has_stuck_for(5_000)) {
        let finding = Finding::certain();
        return Some(
            idle.iter()
                .fold(finding, |finding, fact| finding.fact("device", fact)),
        );
    }
    if look.is_driven("virtio-net").is_some() {
        return None;
    }
    // Without the device's word: programs that look for an interface, and find none.
    let complaint = ABSENT.iter().find_map(|parts| look.first(parts))?;
    Some(Finding::likely().line(look, complaint))
}

fn interfaces<'l>(look: &'l Look<'_>) -> impl Iterator<Item = &'l Interface> {
    look.scene.host.interfaces.iter()
}

pub(super) fn tap_missing(look: &Look<'_>) -> Option<Finding> {
    let gone = interfaces(look).find(|interface| !interface.exists)?;
    Some(Finding::certain().fact("host", &format!("there is no interface {}", gone.name)))
}

pub(super) fn tap_no_carrier(look: &Look<'_>) -> Option<Finding> {
    let idle =
        interfaces(look).find(|interface| interface.exists && interface.carrier == Some(false))?;
    // An interface that is down has no carrier to speak of.
    if idle.is_up == Some(false) {
        let fact = format!("{} is down", idle.name);
        return Some(
            Finding::likely()
                .fact("host", &fact)
                .mend(format!("`ip link set {} up`.", idle.name)),
        );
    }
    Some(Finding::certain().fact("host", &format!("{}: NO-CARRIER", idle.name)))
}

pub(super) fn guest_silent(look: &Look<'_>) -> Option<Finding> {
    let unanswered = look
        .scene
        .host
        .neighbours
        .iter()
        .find(|neighbour| neighbour.state == NeighbourState::Incomplete);
    let counts = interfaces(look)
        .map(|i| (i.name.as_str(), i.carrier, i.to_guest, i.from_guest))
        .chain(
            look.devices("virtio-net")
                .map(|n| (n.name.as_str(), None, n.to_guest, n.from_guest)),
        );
    let mute: Vec<String> = counts
        .filter(|(_, carrier, to, from)| {
            *carrier != Some(false) && to.is_some_and(|to| to > 0) && *from == Some(0)
        })
        .map(|(name, _, to, _)| {
            format!(
                "{name}: {} frames to the guest, none from it",
                to.unwrap_or_default()
            )
        })
        .collect();
    let finding = match (unanswered, mute.is_empty()) {
        (Some(_), false) => Finding::certain(),
        (Some(_), true) if interfaces(look).any(|i| i.carrier == Some(true)) => Finding::likely(),
        // While it boots, a guest is silent anyhow.
        (None, false) if look.has_reached(Stage::Userland) => Finding::possible(),
        _ => return None,
    };
    let finding = mute
        .iter()
        .fold(finding, |finding, fact| finding.fact("host", fact));
    Some(match unanswered {
        Some(neighbour) => finding.fact(
            "host",
            &format!(
                "ARP for {} on {} is incomplete",
                neighbour.address, neighbour.interface
            ),
        ),
        None => finding,
    })
}

pub(super) fn address_taken(look: &Look<'_>) -> Option<Finding> {
    let foreign = look.scene.host.neighbours.iter().find_map(|neighbour| {
        let NeighbourState::Resolved { mac } = &neighbour.state else {
            return None;
        };
        let expected = neighbour.expected.as_ref()?;
        (!mac.eq_ignore_ascii_case(expected)).then(|| {
            format!(
                "{} answers as {mac}; the guest's card is {expected}",
                neighbour.address
            )
        })
    })?;
    Some(
        Finding::likely()
            .fact("host", &foreign)
            .say("A guest that gave its own card another address looks the same."),
    )
}

pub(super) fn refused(look: &Look<'_>) -> Option<Finding> {
    let probe = look
        .scene
        .host
        .probes
        .iter()
        .find(|probe| probe.answer == Answer::Refused)?;
    Some(Finding::certain().fact("host", &format!("{}: connection refused", probe.target)))
}

pub(super) fn unreachable(look: &Look<'_>) -> Option<Finding> {
    let (target, what) = look
        .scene
        .host
        .probes
        .iter()
        .find_map(|probe| match probe.answer {
            Answer::Unreachable => Some((&probe.target, "no way there")),
            Answer::TimedOut => Some((&probe.target, "no answer")),
            Answer::Open | Answer::Refused => None,
        })?;
    Some(Finding::certain().fact("host", &format!("{target}: {what}")))
}
