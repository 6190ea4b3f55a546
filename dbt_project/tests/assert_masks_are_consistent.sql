-- Equal plain values have equal tokens, and equal tokens come from equal plain values, for each kind.
{{ config(tags=['full_scan']) }}

select * from {{ as_owner(ref('stg_sqs__mask_consistency')) }}
where plain_values <> tokens or tokens <> pairs
