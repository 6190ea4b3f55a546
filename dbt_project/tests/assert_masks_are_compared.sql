-- The tests of the masks compare every accepted message that is still in raw: a test of nothing passes too.
{{ config(tags=['full_scan']) }}

with

masked_fields as (

    {%- for event, it in declared_events().items() -%}
    {%- set event_loop = loop -%}
    {%- for field in it.fields.values() if field.masked_as %}
    select '{{ event }}' as event_type, '{{ field.name }}' as field
    {%- if not (loop.last and event_loop.last) %} union all{% endif %}
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

select masked_fields.event_type, masked_fields.field, accepted_in_raw.messages, compared.messages as compared
from masked_fields
inner join accepted_in_raw on masked_fields.event_type = accepted_in_raw.event_type
left join {{ as_owner(ref('stg_sqs__mask_consistency')) }} as compared
    on masked_fields.event_type = compared.event_type and masked_fields.field = compared.field
where coalesce(compared.messages, 0) < accepted_in_raw.messages
