//! Header fields: which are hop-by-hop, which belong to one answer, which the gateway adds.
