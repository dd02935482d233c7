//! The project's own commands.
use nyx_harness::lab::*;
fn main() -> anyhow::Result<()> {
    let t = std::time::Instant::now();
    Lab::prepare()?;
    eprintln!("prepared {:?}", t.elapsed());
    let argv: Vec<_> = std::env::args_os().skip(1).collect();
    let mut s = Lab::default().boot()?;
    eprintln!("booted {:?}", s.boot_time());
    let r = s.stream(&LabCommand::new(argv), Input::Nothing, &mut std::io::stdout(), &mut std::io::stderr())?;
    eprintln!("{r:?}");
    let t = std::time::Instant::now();
    s.end()?;
    eprintln!("ended {:?}", t.elapsed());
    Ok(())
}
