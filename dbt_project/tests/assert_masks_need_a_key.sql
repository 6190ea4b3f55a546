-- No token is the bare hash of its value: without a key, all addresses and device ids can be tried in minutes.
{{ config(tags=['full_scan']) }}

select event_type, field, tokens_without_key from {{ as_owner(ref('stg_sqs__mask_consistency')) }}
where tokens_without_key > 0
