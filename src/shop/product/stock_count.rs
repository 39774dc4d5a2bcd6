//! Items in stock, in each category and in all.

use crate::storage::{Reader, ReaderExt, StoreError, Tx};

/// The row of `product_count` that counts all categories.
const ALL_CATEGORIES: i64 = -1;

pub(super) fn add_to_stock_count(tx: &mut dyn Tx, category: u32, items: i64) -> Result<(), StoreError> {
    for category in [i64::from(category), ALL_CATEGORIES] {
        tx.execute(
            "INSERT INTO product_count (category, in_stock) VALUES ($1, $2)
             ON CONFLICT (category) DO UPDATE SET in_stock = product_count.in_stock + excluded.in_stock",
            &[category.into(), items.into()],
        )?;
    }
    Ok(())
}

/// Visible items with stock.
pub(super) fn stock_count(reader: &(impl Reader + ?Sized), category: Option<u32>) -> Result<u64, StoreError> {
    let category = category.map_or(ALL_CATEGORIES, i64::from);
    let count = reader
        .first("SELECT in_stock FROM product_count WHERE category = $1", &[category.into()], |row| row.uint(0))?;
    Ok(count.unwrap_or(0))
}
