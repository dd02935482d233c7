//! `nyx disk` and `nyx net`.

use crate::complete;
use crate::exit::{Failure, REFUSED};
use crate::output::{Align, Table, json, print, print_json};
use crate::session::Session;
use crate::steer::{Request, one};
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use nyx_api::DeviceDescription;
use nyx_client::nearest;
use nyx_spec::parse_options;

#[derive(Subcommand)]
pub(crate) enum DiskVerb {
    /// Add a disk while the machine runs
    Add(AddDiskArgs),
    /// Remove a disk while the machine runs: the guest is asked to let go of it first
    Remove(RemoveArgs),
    /// List a machine's disks
    #[command(visible_alias = "list")]
    Ls(ListArgs),
}

#[derive(Subcommand)]
pub(crate) enum NetVerb {
    /// Add a network device while the machine runs
    Add(AddNetArgs),
    /// Remove a network device while the machine runs: the guest is asked to let go of it first
    Remove(RemoveArgs),
    /// List a machine's network devices
    #[command(visible_alias = "list")]
    Ls(ListArgs),
}

#[derive(Args)]
pub(crate) struct AddDiskArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// The disk, as `nyx run --disk` takes it: PATH[,readonly][,serial=S][,name=N]…
    #[arg(value_name = "DISK", value_hint = clap::ValueHint::FilePath)]
    disk: String,
}

#[derive(Args)]
pub(crate) struct AddNetArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// The network, as `nyx run --net` takes it: user[,forward=…]… or tap[,tap=IFACE]… with [,name=N]
    #[arg(value_name = "NET")]
    net: String,
}

#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
    /// The device's name, as `ls` shows it
    #[arg(value_name = "DEVICE", add = ArgValueCompleter::new(complete::devices))]
    device: String,
    /// Take it away even if the guest does not let go of it; what it was about to write is lost
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// The machine
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::machines))]
    name: String,
}

pub(crate) fn disk(verb: &DiskVerb) -> Result<(), Failure> {
    let session = Session::new()?;
    match verb {
        DiskVerb::Add(args) => {
            let mut disk: nyx_spec::DiskConfig =
                parse_options(&args.disk, "path", &[]).map_err(|e| wrong(&e))?;
            // The machine's process may have another working folder.
            disk.path = std::path::absolute(&disk.path).unwrap_or(disk.path);
            let named = session.find(&args.name)?;
            one(&session, named, &Request::AddDisk(Box::new(disk)))
        }
        DiskVerb::Remove(args) => {
            let named = session.find(&args.name)?;
            let disks = session.call(named.client.disks())?;
            let name = known(&disks, &args.device, named.name(), "disk")?;
            let force = args.force;
            one(&session, named, &Request::RemoveDisk { name, force })
        }
        DiskVerb::Ls(args) => {
            let named = session.find(&args.name)?;
            let disks = session.call(named.client.disks())?;
            list(&disks, named.name(), "disks", "nyx disk add")
        }
    }
}

pub(crate) fn net(verb: &NetVerb) -> Result<(), Failure> {
    let session = Session::new()?;
    match verb {
        NetVerb::Add(args) => {
            let net: nyx_spec::NetConfig =
                parse_options(&args.net, "kind", &["forward", "fds"]).map_err(|e| wrong(&e))?;
            let named = session.find(&args.name)?;
            one(&session, named, &Request::AddNet(Box::new(net)))
        }
        NetVerb::Remove(args) => {
            let named = session.find(&args.name)?;
            let nets = session.call(named.client.nets())?;
            let name = known(&nets, &args.device, named.name(), "network device")?;
            let force = args.force;
            one(&session, named, &Request::RemoveNet { name, force })
        }
        NetVerb::Ls(args) => {
            let named = session.find(&args.name)?;
            let nets = session.call(named.client.nets())?;
            list(&nets, named.name(), "network devices", "nyx net add")
        }
    }
}

fn wrong(error: &nyx_spec::ParseError) -> Failure {
    Failure::new(REFUSED, error.to_string())
}

/// `name` if there is such a device; the machine is not asked for what it does not have.
fn known(
    devices: &[DeviceDescription],
    name: &str,
    machine: &str,
    kind: &str,
) -> Result<String, Failure> {
    let names = devices.iter().map(|device| device.name.as_str());
    if names.clone().any(|known| known == name) {
        return Ok(name.into());
    }
    let mend = match nearest(name, names.clone()) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if devices.is_empty() => "it has none".into(),
        None => format!("it has {}", names.collect::<Vec<_>>().join(", ")),
    };
    Err(Failure::new(
        crate::exit::NOT_FOUND,
        format!("machine `{machine}` has no {kind} called {name:?}; {mend}"),
    ))
}

fn list(
    devices: &[DeviceDescription],
    machine: &str,
    kind: &str,
    mend: &str,
) -> Result<(), Failure> {
    if json() {
        return print_json(&devices);
    }
    if devices.is_empty() {
        return print(format!(
            "{machine} has no {kind}; add one with `{mend} {machine} …`.\n"
        ));
    }
    print(device_table(devices).render())
}

/// Devices as a table.
pub(crate) fn device_table(devices: &[DeviceDescription]) -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("KIND", Align::Left),
        ("LOCATION", Align::Left),
        ("REMOVABLE", Align::Left),
        ("BACKEND", Align::Left),
    ]);
    for device in devices {
        table.row([
            device.name.clone(),
            device.kind.clone(),
            device.location.clone(),
            if device.removable { "yes" } else { "no" }.into(),
            device.backend.clone().unwrap_or_default(),
        ]);
    }
    table
}
