//! Renders each page from a status, or from the reason why there is none.
//!
//! Invariant: a server that is not ready always gives a reason. It must not send requests.

use std::sync::atomic::{AtomicU64, Ordering};

use super::exposition;
use super::http::{Exposition, Page, Response};
use uppercased_ctl::status::AgentAnswers;
use uppercased_ctl::status::Status;

/// Responses sent by this process, by status code.
#[derive(Debug, Default)]
pub(super) struct Answered([AtomicU64; Response::STATUSES.len()]);

impl Answered {
    /// Counts one request.
    pub(super) fn count(&self, status: u16) {
        let index = Response::STATUSES.iter().position(|known| *known == status);
        if let Some(count) = index.and_then(|index| self.0.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns every status and its count.
    pub(super) fn all(&self) -> [(u16, u64); Response::STATUSES.len()] {
        std::array::from_fn(|index| {
            let count = self.0[index].load(Ordering::Relaxed);
            (Response::STATUSES[index], count)
        })
    }
}

/// Returns the page for the supervisor's status, or for the reason why there is none.
pub(super) fn answer(
    page: Page,
    status: &Result<Box<Status>, String>,
    answered: &Answered,
    agent: AgentAnswers,
) -> Response {
    let status = match status {
        Ok(status) => status,
        Err(cause) => return Response::text(503, &format!("no answer from the server: {cause}")),
    };
    match page {
        Page::Health => Response::text(200, "ok"),
        Page::Ready => match status.unready() {
            None => Response::text(200, &status.ready_words()),
            Some(why) => Response::text(503, &why),
        },
        Page::Status => match serde_json::to_string(status) {
            Ok(body) => Response {
                status: 200,
                content_type: "application/json",
                body: body + "\n",
            },
            Err(error) => Response::text(503, &error.to_string()),
        },
        Page::Metrics(wanted) => match exposition::write(status, &answered.all(), agent) {
            Ok(text) => Response {
                status: 200,
                content_type: wanted.content_type(),
                body: match wanted {
                    Exposition::OpenMetrics => text,
                    Exposition::Classic => exposition::classic(&text),
                },
            },
            Err(error) => Response::text(503, &error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uppercased_ctl::status::SlotStatus;

    fn status(phase: &str, queues: &[&str]) -> Box<Status> {
        let slot = |queue: &&str| SlotStatus {
            queue: (*queue).to_owned(),
            ..SlotStatus::default()
        };
        Box::new(Status {
            phase: phase.to_owned(),
            slots: queues.iter().map(slot).collect(),
            ..Status::default()
        })
    }

    #[test]
    fn ready_server_serves_every_queue() {
        let ready = |phase, queues: &[&str]| status(phase, queues).unready().is_none();
        assert!(ready("serving", &["served", "served"]));
        assert!(ready("serving", &["served", "unbound"]));
        assert!(ready("serving", &["served", "closed"]));
        assert!(ready("serving", &["served", "lent"]));
        // An exited worker is replaced within the grace period.
        let mut unserved = status("serving", &["served", "unserved"]);
        assert_eq!(unserved.unready(), None);
        unserved.slots[1].unserved_ms = 2_000;
        assert!(unserved.unready().is_some());
        let mut stalled = status("serving", &["served"]);
        stalled.slots[0].state = "stalled".to_owned();
        stalled.slots[0].stalled_ms = Some(12_000);
        assert_eq!(stalled.unready().unwrap(), "slot 0 is stalled 12s");
        let mut lost = status("serving", &["served"]);
        lost.slots[0].lost_listener_ms = Some(5_000);
        assert_eq!(lost.unready().unwrap(), "slot 0 lost a listener 5s ago");
        for phase in [
            "idle",
            "booting",
            "start failed",
            "draining",
            "killing",
            "ended",
        ] {
            assert!(!ready(phase, &["served"]), "{phase}");
        }
    }

    #[test]
    fn degraded_server_is_ready_and_names_missing() {
        let mut status = status("serving", &["served", "lent", "unbound"]);
        assert_eq!(status.unready(), None);
        status.slots[1].slot = uppercased_ctl::identity::SlotId(1);
        status.slots[1].state = "backing off".to_owned();
        status.slots[2].state = "waiting".to_owned();
        let words = "ready, degraded: 2 of 3 workers missing; slot 1 is backing off, \
                     its queue lent";
        assert_eq!(status.ready_words(), words);
        status.slots.truncate(1);
        assert_eq!(status.ready_words(), "ready");
    }

    #[test]
    fn drained_server_is_unready_and_names_rotation() {
        for (word, ready) in [("in", true), ("", true), ("drain", false), ("maint", false)] {
            let mut status = status("serving", &["served"]);
            status.rotation = word.to_owned();
            let why = status.unready();
            assert_eq!(why.is_none(), ready, "{word}");
            assert!(why.is_none_or(|why| why.contains(word)));
        }
    }

    #[test]
    fn silent_supervisor_is_unhealthy_on_every_page() {
        let missing = Err("no answer in time".to_owned());
        let metrics = Page::Metrics(Exposition::OpenMetrics);
        for page in [metrics, Page::Health, Page::Ready, Page::Status] {
            let response = answer(
                page,
                &missing,
                &Answered::default(),
                AgentAnswers::default(),
            );
            assert_eq!(response.status, 503);
            assert!(response.body.contains("no answer in time"));
        }
        // A stopping server is alive.
        let drained = Ok(status("draining", &["served"]));
        let of = |page| {
            answer(
                page,
                &drained,
                &Answered::default(),
                AgentAnswers::default(),
            )
            .status
        };
        assert_eq!((of(Page::Health), of(Page::Ready)), (200, 503));
        assert_eq!((of(Page::Status), of(metrics)), (200, 200));
    }

    #[test]
    fn answers_are_counted_by_status() {
        let answered = Answered::default();
        for status in [200, 503, 200] {
            answered.count(status);
        }
        let counted = answered.all().into_iter().filter(|(_, count)| *count > 0);
        assert_eq!(counted.collect::<Vec<_>>(), [(200, 2), (503, 1)]);
    }
}
