-- Every landed message, judged: what it says in the open, in canonical plain form, and masked. For masker's eyes only,
-- and for the functions of privacy that seal and erase what is plain: they are the owner of raw's.
-- One select and no with: each function in `from` keeps the planner from copying its expression, and with it the
-- parsing, into every column; and Citus sends it to the workers as it is, so that they mask, and nothing plain travels.
{{ config(grants={'select': ['pipeline_owner']}) }}
{%- set open_fields, masked_fields = declared_fields(masked=false), declared_fields(masked=true) %}

select
    -- ids
    messages.message_id,
    messages.queue,
    messages.load_id,

    -- times
    messages.sent_at,
    messages.loaded_at,

    -- the verdict
    {{ event_type() }} as event_type,
    {{ reason_with_envelopes() }} as reason,
    octet_length(messages.body) as body_bytes,

    -- plain
    messages.body,
    messages.body || coalesce(' ' || messages.attributes::text, '') || coalesce(' "' || messages.message_group_id || '"', '')
        as body_and_attributes,
    {%- for field in masked_fields %}
    canonical.{{ field.name }} as {{ field.name }},
    {%- endfor %}

    -- open fields and tokens, of accepted messages only
    case when verdict.reason is null then {{ trimmed(subject()) }} end as subject,
    {%- for field in open_fields %}
    case when verdict.reason is null then {{ open_value(field) }} end as {{ field.name }},
    {%- endfor %}
    {%- for field in masked_fields %}
    {{ mask('case when verdict.reason is null then canonical.' ~ field.name ~ ' end', kind=field.masked_as) }}
        as masked_{{ field.name }},
    case when verdict.reason is null then {{ is_placeholder(field) }} end as {{ field.name }}_is_placeholder,
    {%- endfor %}
    {{ mask_key_version() }} as mask_key_version
    {#- of rejected messages too: what was accepted once is erased by its tokens #}
    {%- for field in masked_fields -%}
    ,
    {{ mask('canonical.' ~ field.name, kind=field.masked_as) }} as token_of_{{ field.name }}
    {%- endfor %}
from {{ source('raw', 'sqs_messages') }} as messages
cross join lateral unnest(array[{{ parsed_event() }}]) as parsed (event)
cross join lateral {{ first_level() }}
{%- if masked_fields %}
cross join lateral unnest(
    {%- for field in masked_fields %}
    array[{{ canonical(text_of(field.events), field.form) }}]{{ ',' if not loop.last }}
    {%- endfor %}
) as canonical ({{ masked_fields | map(attribute='name') | join(', ') }})
{%- endif %}
cross join lateral unnest(array[{{ rejection_reason() }}]) as verdict (reason)
