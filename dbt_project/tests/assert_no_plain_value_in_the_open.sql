-- No accepted message has its own address or device id in a column that is not masked.
{{ config(tags=['full_scan']) }}

select kind, logins_with_value_in_the_open from {{ as_owner(ref('stg_sqs__mask_consistency')) }}
where logins_with_value_in_the_open > 0
