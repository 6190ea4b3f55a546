-- What is published of each message is what staging has of it, and of each that is still in raw, what the boundary says:
-- tokens and open values alike. (Rejected ones by staging alone: the boundary may accept one by now, staging not yet.)
{{ config(tags=['full_scan']) }}
{%- set taken = ref('int_messages__masked') %}

with

boundary as (

    select * from {{ as_owner(ref('stg_sqs__messages')) }}

)
{%- for event, it in declared_events().items() %}
{%- for place, relation in {'boundary': 'boundary', 'staging': taken}.items() %}

select
    '{{ it.model }}' as published_in,
    '{{ place }}' as unlike,
    count(*) as differing
from {{ ref(it.model) }} as published
inner join {{ relation }} as said on published.message_id = said.message_id
where
    said.reason is not null
    or said.event_type <> '{{ event }}'
    {%- for column in columns_of(it.model) if column in declared_columns() + ['mask_key_version', 'load_id', 'sent_at'] %}
    or published.{{ column }} is distinct from said.{{ column }}
    {%- endfor %}
    {%- if 'create_date' in columns_of(it.model) %}
    or published.create_date is distinct from (said.sent_at at time zone 'utc')::date
    {%- endif %}
    {%- if 'logged_in_at' in columns_of(it.model) %}
    or published.logged_in_at is distinct from date_trunc('{{ it.shown_to_the }}', said.sent_at, 'utc')
    {%- endif %}
having count(*) > 0
union all
{%- endfor %}
{%- endfor %}

select
    'rejected_messages' as published_in,
    'staging' as unlike,
    count(*) as differing
from {{ ref('rejected_messages') }} as published
inner join {{ taken }} as said on published.message_id = said.message_id
where
    published.reason is distinct from said.reason
    {%- for column in ('queue', 'sent_at', 'load_id', 'body_bytes') %}
    or published.{{ column }} is distinct from said.{{ column }}
    {%- endfor %}
having count(*) > 0
