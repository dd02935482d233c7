//! The screen of `nyx top`: one line per machine, and the chosen one in detail.

use super::gather::{Gathered, Rates, Watched};
use super::{HEAD, cells};
use crate::output::{Align, bytes, count, printable, span};
use crate::session::Session;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, TableState};
use std::cmp::Ordering;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// By what the machines are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sort {
    #[default]
    Name,
    Cpu,
    Exits,
    Disk,
    Net,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Cpu,
            Self::Cpu => Self::Exits,
            Self::Exits => Self::Disk,
            Self::Disk => Self::Net,
            Self::Net => Self::Name,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Cpu => "CPU",
            Self::Exits => "exits",
            Self::Disk => "disk bytes",
            Self::Net => "net bytes",
        }
    }

    /// Busiest first, names as in a dictionary.
    fn order(self, a: &Watched, b: &Watched) -> Ordering {
        let key: fn(&Rates) -> f64 = match self {
            Self::Name => return a.name.cmp(&b.name),
            Self::Cpu => |rates| rates.cpu_percent,
            Self::Exits => |rates| rates.exits,
            Self::Disk => |rates| rates.disk_bytes,
            Self::Net => |rates| rates.net_bytes,
        };
        let value = |watched: &Watched| watched.rates.as_ref().map_or(-1.0, key);
        value(b)
            .total_cmp(&value(a))
            .then_with(|| a.name.cmp(&b.name))
    }
}

/// What the user has chosen.
#[derive(Debug, Default)]
struct Screen {
    sort: Sort,
    /// The id of the chosen machine, which stays chosen wherever it moves.
    chosen: Option<String>,
    detail: bool,
}

/// Draws until the user has seen enough.
pub(super) fn run(session: &Session, names: &[String], interval: Duration) -> io::Result<()> {
    // The terminal is itself again before any of these ends the command.
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, ended.clone())?;
    }
    let mut terminal = ratatui::try_init()?;
    let done = draw_until_left(&mut terminal, session, names, interval, &ended);
    ratatui::try_restore()?;
    done
}

fn draw_until_left(
    terminal: &mut ratatui::DefaultTerminal,
    session: &Session,
    names: &[String],
    interval: Duration,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut screen = Screen {
        detail: true,
        ..Screen::default()
    };
    let mut gathered = Gathered::default();
    let mut next = Instant::now();
    while !ended.load(Relaxed) {
        if Instant::now() >= next {
            gathered.look(session, names);
            next = Instant::now() + interval;
        }
        gathered.machines.sort_by(|a, b| screen.sort.order(a, b));
        terminal.draw(|frame| screen.draw(frame, &gathered))?;
        let left = next.saturating_duration_since(Instant::now());
        // Now and then it looks up for signals.
        if event::poll(left.min(Duration::from_millis(500)))?
            && !screen.take(&event::read()?, &gathered)
        {
            return Ok(());
        }
    }
    Ok(())
}

impl Screen {
    fn index(&self, machines: &[Watched]) -> Option<usize> {
        let chosen = self.chosen.as_ref();
        let index = machines.iter().position(|m| Some(&m.id) == chosen);
        index.or((!machines.is_empty()).then_some(0))
    }

    /// Hears what the user wants; `false` to leave.
    fn take(&mut self, event: &Event, gathered: &Gathered) -> bool {
        let Event::Key(key) = event else {
            return true;
        };
        if key.kind == KeyEventKind::Release {
            return true;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if control => return false,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Enter | KeyCode::Char('d') => self.detail = !self.detail,
            KeyCode::Down | KeyCode::Char('j') => self.step(&gathered.machines, 1),
            KeyCode::Up | KeyCode::Char('k') => self.step(&gathered.machines, -1),
            KeyCode::Home => self.step(&gathered.machines, isize::MIN),
            KeyCode::End => self.step(&gathered.machines, isize::MAX),
            _ => {}
        }
        true
    }

    fn step(&mut self, machines: &[Watched], by: isize) {
        let at = self.index(machines).unwrap_or(0);
        let last = machines.len().saturating_sub(1);
        let to = at.saturating_add_signed(by).min(last);
        self.chosen = machines.get(to).map(|watched| watched.id.clone());
    }

    fn draw(&self, frame: &mut Frame<'_>, gathered: &Gathered) {
        let machines = &gathered.machines;
        // Below two dozen lines the list needs them all.
        let detail = self.detail && !machines.is_empty() && frame.area().height >= 20;
        let constraints = [
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(if detail { 12 } else { 0 }),
            Constraint::Length(1),
        ];
        let [title, list, below, keys] = Layout::vertical(constraints).areas(frame.area());
        let summary = format!(
            "nyx top   {} machine{}   sorted by {}",
            machines.len(),
            if machines.len() == 1 { "" } else { "s" },
            self.sort.title()
        );
        frame.render_widget(Line::raw(summary).style(Modifier::BOLD), title);
        if machines.is_empty() {
            let words = match &gathered.trouble {
                Some(trouble) => printable(trouble),
                None => "No machines are running; start one with `nyx run`.".into(),
            };
            frame.render_widget(Paragraph::new(words), list);
        } else {
            self.list(frame, list, machines);
        }
        let chosen = self.index(machines).and_then(|index| machines.get(index));
        if let (true, Some(watched)) = (detail, chosen) {
            details(frame, below, watched);
        }
        let help = "q quit   ↑ ↓ choose   s sort   d detail";
        frame.render_widget(Line::raw(help).style(Modifier::DIM), keys);
    }

    fn list(&self, frame: &mut Frame<'_>, area: Rect, machines: &[Watched]) {
        let aligned = |text: String, align: Align| {
            Cell::from(Text::from(text).alignment(match align {
                Align::Left => Alignment::Left,
                Align::Right => Alignment::Right,
            }))
        };
        let rows = machines.iter().map(|watched| {
            let row = cells(watched).into_iter().zip(HEAD);
            let row = Row::new(row.map(|(cell, (_, align))| aligned(printable(&cell), align)));
            match &watched.machine {
                Ok(_) => row,
                Err(_) => row.style(Color::Red),
            }
        });
        let longest = machines.iter().map(|watched| watched.name.len()).max();
        let name = u16::try_from(longest.unwrap_or(4).clamp(4, 24)).unwrap_or(24);
        let widths = [name, 9, 6, 6, 7, 7, 7, 7, 7, 8, 7, 7].map(Constraint::Length);
        let head = HEAD.map(|(title, align)| aligned(title.into(), align));
        let table = Table::new(rows, widths)
            .header(Row::new(head).style(Modifier::REVERSED))
            .row_highlight_style(Style::new().add_modifier(Modifier::BOLD).fg(Color::Cyan));
        let mut state = TableState::default().with_selected(self.index(machines));
        frame.render_stateful_widget(table, area, &mut state);
    }
}

fn details(frame: &mut Frame<'_>, area: Rect, watched: &Watched) {
    let block = Block::bordered().title(format!(" {} ", printable(&watched.name)));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let [facts, trends] =
        Layout::horizontal([Constraint::Length(38), Constraint::Min(10)]).areas(inside);
    frame.render_widget(Paragraph::new(facts_of(watched)), facts);
    let trend = |get: fn(&Rates) -> f64| watched.trend.iter().map(get).collect::<Vec<_>>();
    type Show = fn(f64) -> String;
    let percent: Show = |value| format!("{value:.0} %");
    let rate: Show = |value| format!("{}/s", count(value));
    let size: Show = |value| format!("{}/s", bytes(value as u64));
    let charts = [
        ("CPU", trend(|r| r.cpu_percent), percent),
        ("exits", trend(|r| r.exits), rate),
        ("disk", trend(|r| r.disk_bytes), size),
        ("net", trend(|r| r.net_bytes), size),
    ];
    let rows: [Rect; 4] = Layout::vertical([Constraint::Ratio(1, 4); 4]).areas(trends);
    for ((title, values, show), row) in charts.into_iter().zip(rows) {
        let [label, chart] =
            Layout::horizontal([Constraint::Length(18), Constraint::Min(4)]).areas(row);
        let last = values.last().map_or("–".into(), |value| show(*value));
        frame.render_widget(Line::raw(format!("{title:<6}{last:>11}")), label);
        // The newest as far right as there is room.
        let skip = values.len().saturating_sub(chart.width.into());
        let bars = values.iter().skip(skip).map(|value| (value * 10.0) as u64);
        frame.render_widget(Sparkline::default().data(bars), chart);
    }
}

fn facts_of(watched: &Watched) -> Text<'static> {
    let machine = match &watched.machine {
        Ok(machine) => machine,
        Err(why) => return Text::raw(printable(why)),
    };
    let mut lines = vec![
        format!("id       {}", machine.id),
        format!("process  {}", machine.pid),
        format!("vCPUs    {}", machine.cpus),
        format!("memory   {}", bytes(machine.memory)),
        format!("uptime   {}", span(machine.started.uptime_ms)),
        format!("resets   {}", machine.resets),
    ];
    let mut kinds: Vec<_> = watched
        .rates
        .iter()
        .flat_map(|rates| &rates.exits_by_kind)
        .filter(|(_, rate)| **rate > 0.0)
        .collect();
    kinds.sort_by(|a, b| b.1.total_cmp(a.1));
    if !kinds.is_empty() {
        lines.push("exits/s".into());
        let named = kinds.into_iter().take(3);
        lines.extend(named.map(|(kind, rate)| format!("  {kind:<12} {:>8}", count(*rate))));
    }
    Text::from(
        lines
            .into_iter()
            .map(|line| Line::raw(printable(&line)))
            .collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyEvent;

    fn watched(name: &str, cpu: f64) -> Watched {
        let mut gathered = Gathered::default();
        let watched = Watched::for_test(name, cpu);
        gathered.machines.push(watched.clone());
        watched
    }

    fn shown(screen: &Screen, gathered: &Gathered) -> String {
        let mut terminal = Terminal::new(TestBackend::new(110, 26)).unwrap();
        terminal.draw(|frame| screen.draw(frame, gathered)).unwrap();
        terminal.backend().to_string()
    }

    fn press(screen: &mut Screen, gathered: &Gathered, code: KeyCode) -> bool {
        screen.take(
            &Event::Key(KeyEvent::new(code, KeyModifiers::NONE)),
            gathered,
        )
    }

    #[test]
    fn the_chosen_machine_stays_chosen_when_others_come_and_go() {
        let mut screen = Screen::default();
        let mut gathered = Gathered::default();
        assert!(press(&mut screen, &gathered, KeyCode::Down));
        gathered.machines = vec![watched("a", 1.0), watched("b", 90.0), watched("c", 5.0)];
        assert_eq!(screen.index(&gathered.machines), Some(0));
        press(&mut screen, &gathered, KeyCode::Down);
        assert_eq!(screen.chosen.as_deref(), Some("b"));
        press(&mut screen, &gathered, KeyCode::Char('s'));
        gathered.machines.sort_by(|a, b| screen.sort.order(a, b));
        assert_eq!(gathered.machines[0].name, "b");
        assert_eq!(screen.index(&gathered.machines), Some(0));
        gathered.machines.remove(0);
        assert_eq!(screen.index(&gathered.machines), Some(0));
        press(&mut screen, &gathered, KeyCode::End);
        assert_eq!(screen.chosen.as_deref(), Some("a"));
        press(&mut screen, &gathered, KeyCode::Home);
        assert_eq!(screen.chosen.as_deref(), Some("c"));
        assert!(!press(&mut screen, &gathered, KeyCode::Char('q')));
    }

    #[test]
    fn the_screen_shows_machines_and_the_chosen_one_in_detail() {
        let screen = Screen {
            detail: true,
            ..Screen::default()
        };
        let mut gathered = Gathered::default();
        let empty = shown(&screen, &gathered);
        assert!(
            empty.contains("No machines are running; start one with `nyx run`."),
            "{empty}"
        );
        gathered.machines = vec![watched("web1", 42.0)];
        let text = shown(&screen, &gathered);
        for words in [
            "1 machine ",
            "web1",
            "running",
            "42.0",
            "┌ web1 ─",
            "vCPUs    2",
            "mmio",
            "q quit",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
