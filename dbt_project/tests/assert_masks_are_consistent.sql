-- For each masked field, over all accepted messages that are still in raw: equal values have equal tokens and no others;
-- no token is the bare hash of its value, or all addresses could be tried in minutes; no value is in the open as well, in
-- whatever spelling; and every message was compared, since a test of nothing passes too. All by one reading of raw.
{{ config(tags=['full_scan']) }}

with

masked_fields as (

    {%- for field in declared_fields(masked=true) -%}
    {%- set field_loop = loop -%}
    {%- for event in field.events %}
    select '{{ event }}' as event_type, '{{ field.name }}' as field
    {%- if not (loop.last and field_loop.last) %} union all{% endif %}
    {%- endfor -%}
    {%- endfor %}

),

in_raw as materialized (

    select message_id from {{ source('raw', 'sqs_messages') }}

),

accepted_in_raw as (

    select
        taken.event_type,
        count(*) as messages
    from {{ ref('int_messages__masked') }} as taken
    inner join in_raw on taken.message_id = in_raw.message_id
    where taken.is_accepted
    group by taken.event_type

)

select
    masked_fields.event_type,
    masked_fields.field,
    accepted_in_raw.messages as to_compare,
    compared.messages,
    compared.plain_values,
    compared.tokens,
    compared.pairs,
    compared.tokens_without_key,
    compared.messages_with_value_in_the_open
from masked_fields
left join accepted_in_raw on masked_fields.event_type = accepted_in_raw.event_type
left join {{ as_owner(ref('stg_sqs__mask_consistency')) }} as compared
    on masked_fields.event_type = compared.event_type and masked_fields.field = compared.field
where
    coalesce(compared.messages, 0) < accepted_in_raw.messages
    or compared.plain_values <> compared.tokens
    or compared.tokens <> compared.pairs
    or compared.tokens_without_key > 0
    or compared.messages_with_value_in_the_open > 0
