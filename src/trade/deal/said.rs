//! What sides asked, each answered once, and what they are told, each word until it is acknowledged.

use super::{Answered, Deal, Effects, Kind, LogLine, Note, Outstanding, Party, Step};
use crate::model::Cents;
use crate::trade::wire::{Code, Goods, Push, Refusal};

impl Deal {
    /// Whether the same was asked and answered before. With other content it is refused: a number
    /// stands for one request.
    pub(super) fn repeats(
        &self,
        party: Party,
        asked: Answered,
        item_name: &str,
        goods: Option<&Goods>,
    ) -> Result<bool, Refusal> {
        let answered = match party {
            Party::Buyer => &self.answered,
            Party::Seller(seller) => &self.sellers[seller].answered,
        };
        let before = answered.iter().find(|before| before.kind == asked.kind);
        let same_item = item_name == &*self.item_name;
        let offered = match party {
            Party::Seller(seller) => self.sellers[seller].offer.as_ref().map(|offer| &offer.goods),
            Party::Buyer => None,
        };
        let same_goods =
            asked.kind != Kind::Offer || offered.cloned().unwrap_or_default() == goods.cloned().unwrap_or_default();
        match before {
            Some(before) if same_item && same_goods && before.amount == asked.amount => Ok(true),
            Some(_) => Err(Refusal::new(Code::BadRequest, "rq already used")),
            None if same_item => Ok(false),
            None => Err(Refusal::new(
                Code::BadRequest,
                format!("item_name: expected {:?}, as in the search", self.item_name),
            )),
        }
    }

    pub(super) fn answered_mut(&mut self, party: Party) -> &mut Vec<Answered> {
        match party {
            Party::Buyer => &mut self.answered,
            Party::Seller(seller) => &mut self.sellers[seller].answered,
        }
    }

    pub(super) fn changed(&self, party: Party, effects: &mut Effects) {
        match party {
            Party::Buyer => effects.deal_changed = true,
            Party::Seller(seller) => effects.sellers_changed.push(seller),
        }
    }

    fn outstanding(&self, party: Party) -> Option<&Outstanding> {
        match party {
            Party::Buyer => self.outstanding.as_ref(),
            Party::Seller(seller) => self.sellers[seller].outstanding.as_ref(),
        }
    }

    fn outstanding_mut(&mut self, party: Party) -> &mut Option<Outstanding> {
        match party {
            Party::Buyer => &mut self.outstanding,
            Party::Seller(seller) => &mut self.sellers[seller].outstanding,
        }
    }

    /// What this side was told last is not repeated any more.
    pub(super) fn drop_outstanding(&mut self, party: Party) {
        *self.outstanding_mut(party) = None;
    }

    pub(super) fn tell(&mut self, party: Party, note: Note, step: &mut Step, effects: &mut Effects) {
        let gone = match party {
            Party::Buyer => self.buyer_gone,
            Party::Seller(seller) => self.sellers[seller].gone,
        };
        if gone {
            return;
        }
        *self.outstanding_mut(party) = Some(Outstanding { mid: (step.next_mid)(), note });
        self.changed(party, effects);
        // Only the newest word of a step goes out.
        if !effects.told.contains(&party) {
            effects.told.push(party);
        }
    }

    /// What this side is to be told until it acknowledges.
    pub fn push(&self, party: Party) -> Option<Push> {
        let Outstanding { mid, note } = self.outstanding(party)?;
        let (mid, rq, item_name) = (*mid, self.rq_of(party), self.item_name.clone());
        Some(match note {
            Note::Search => Push::Search { rq, mid, item_name, description: self.description.clone() },
            Note::Negotiate => Push::Negotiate { rq, mid, item_name, max_price: self.max_price },
            Note::Reserve(price) => Push::Reserve { rq, mid, item_name, price: *price },
            Note::Released => Push::Released { rq, mid, item_name },
            Note::Found(price, seller) => {
                let Goods { item: offer_item, description: offer_description } = self.goods_of(*seller);
                let seller = self.sellers[*seller].name.clone();
                Push::Found { rq, mid, item_name, price: *price, seller, offer_item, offer_description }
            }
            Note::NotFound => Push::NotFound { rq, mid, item_name, max_price: self.max_price },
            Note::NotAvailable => Push::NotAvailable { rq, mid, item_name },
            Note::Cancel(reason) => Push::Cancel { rq, mid, item_name, reason: reason.clone() },
        })
    }

    /// The number of the push that this side has not acknowledged.
    pub fn outstanding_mid(&self, party: Party) -> Option<u64> {
        self.outstanding(party).map(|outstanding| outstanding.mid)
    }

    /// The side has got this push. False if nothing of that number is outstanding.
    pub fn acknowledge(&mut self, party: Party, mid: u64) -> bool {
        let known = self.outstanding_mid(party) == Some(mid);
        if known {
            *self.outstanding_mut(party) = None;
        }
        known
    }

    pub(super) fn log(
        &self,
        effects: &mut Effects,
        kind: &'static str,
        party: Party,
        price: Option<Cents>,
        detail: &str,
    ) {
        effects.log.push(LogLine { kind, peer: self.name_of(party).clone(), price, detail: detail.to_owned() });
    }
}
