-- No accepted message has the value of a masked field in one that is not masked, in whatever spelling.
{{ config(tags=['full_scan']) }}

select event_type, field, messages_with_value_in_the_open from {{ as_owner(ref('stg_sqs__mask_consistency')) }}
where messages_with_value_in_the_open > 0
