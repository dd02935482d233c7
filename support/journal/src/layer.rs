//! The journal's end of `tracing`.

use crate::journal::Core;
use crate::level::Level;
use crate::tracer::Open;
use crate::value::Collected;
use std::sync::Arc;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Feeds a journal from a `tracing-subscriber` registry.
pub struct JournalLayer(Arc<Core>);

impl std::fmt::Debug for JournalLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalLayer").finish_non_exhaustive()
    }
}

impl JournalLayer {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }

    /// Depends on the callsite alone, so `tracing` asks once per callsite and filter.
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let traced = self.0.tracer.is_on() && self.0.tracer.wants(Level::of(metadata));
        traced || (metadata.is_event() && self.0.logs(metadata))
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JournalLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.widest().as_tracing())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else {
            return;
        };
        let metadata = attributes.metadata();
        let parent = span
            .parent()
            .and_then(|parent| parent.extensions().get::<Open>().map(Open::id));
        let mut collected = Collected::default();
        attributes.record(&mut collected);
        let fields = collected.fields;
        let open = self
            .0
            .tracer
            .begin(metadata.name(), metadata.target(), parent, fields);
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else {
            return;
        };
        let mut collected = Collected::default();
        values.record(&mut collected);
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            open.fields.append(&mut collected.fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let level = Level::of(metadata);
        if self.0.tracer.is_on() && self.0.tracer.wants(level) {
            // An event without a name of its own is called after its place in the source.
            let name = match metadata.name() {
                name if name.starts_with("event ") => metadata.target(),
                name => name,
            };
            match context.event_span(event) {
                Some(span) => {
                    let mut extensions = span.extensions_mut();
                    self.0.tracer.event(name, extensions.get_mut::<Open>());
                }
                None => self.0.tracer.event(name, None),
            }
        }
        if self.0.logs(metadata) && self.0.admits(metadata.target(), level) {
            let mut collected = Collected::default();
            event.record(&mut collected);
            let Collected { message, fields } = collected;
            self.0.emit(metadata.target(), level, message, fields, None);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let open = context
            .span(&id)
            .and_then(|span| span.extensions_mut().remove::<Open>());
        if let Some(open) = open {
            self.0.tracer.end(open);
        }
    }
}
