//! A status with its reader's additions: the sockets on the ports, and rates since the previous
//! sample.

use serde::{Deserialize, Serialize};

use super::data::{SlotStatus, Status};
use super::processes::ProcessStatus;
use super::rates::Rates;
use super::sockets::Sockets;
use super::{text, worker};

/// A status with its reader's additions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// The status received from the server.
    #[serde(flatten)]
    pub status: Status,
    /// The sockets on the server's ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<Sockets>,
    /// The rates since the previous sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
}

impl Sample {
    /// Returns all lines for people, with sockets and rates, 80 columns wide.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        text::lines(self.view(), usize::MAX)
    }

    pub(super) const fn view(&self) -> text::View<'_> {
        text::View {
            status: &self.status,
            sockets: self.sockets.as_ref(),
            rates: self.rates.as_ref(),
        }
    }

    /// Returns the lines about the last operation, the rescues and the sockets.
    pub fn context(&self) -> Vec<String> {
        let last = self.status.last_operation.as_ref();
        let last = last.filter(|_| self.status.operation.is_none());
        let mut lines: Vec<String> = last.map(text::last_operation).into_iter().collect();
        lines.extend(text::rescues(&self.status));
        lines.extend(self.sockets.iter().flat_map(text::on_the_ports));
        lines
    }

    /// Returns the line with the reason why the server is not ready, if it is not.
    pub fn not_ready(&self) -> Option<String> {
        text::not_ready(&self.status)
    }

    /// Returns the number of open connections and its limit.
    pub fn open(&self) -> String {
        text::open(&self.status)
    }

    /// Returns the lines about one worker, the most important first.
    pub fn worker(&self, slot: &SlotStatus) -> Vec<String> {
        worker::lines(slot, &self.status, self.rates.as_ref())
    }

    /// Returns memory, CPU share and descriptors of a process; dashes where they are unknown.
    pub fn usage(&self, process: &ProcessStatus) -> [String; 3] {
        text::usage_cells(process, self.rates.as_ref())
    }

    /// Returns the lines about single slots.
    pub fn notes(&self) -> Vec<String> {
        let slots = self.status.slots.iter();
        let notes = slots.flat_map(|slot| text::notes(slot, &self.status));
        notes.collect()
    }
}
