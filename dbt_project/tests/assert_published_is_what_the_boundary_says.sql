-- What is published of each message that is still in raw is what the boundary says of it: tokens and open values alike.
{{ config(tags=['full_scan']) }}

with

boundary as (

    select * from {{ as_owner(ref('stg_sqs__messages')) }}

)
{%- for event, it in declared_events().items() %}

select
    '{{ it.model }}' as published_in,
    count(*) as differing
from {{ ref(it.model) }} as published
inner join boundary on published.message_id = boundary.message_id
where
    boundary.reason is not null
    or boundary.event_type <> '{{ event }}'
    {%- for column in columns_of(it.model) if column in declared_columns() + ['mask_key_version', 'load_id', 'sent_at'] %}
    or published.{{ column }} is distinct from boundary.{{ column }}
    {%- endfor %}
    {%- if 'create_date' in columns_of(it.model) %}
    or published.create_date is distinct from (boundary.sent_at at time zone 'utc')::date
    {%- endif %}
    {%- if 'logged_in_at' in columns_of(it.model) %}
    or published.logged_in_at is distinct from date_trunc('{{ it.shown_to_the }}', boundary.sent_at, 'utc')
    {%- endif %}
having count(*) > 0
{%- if not loop.last %}
union all
{%- endif %}
{%- endfor %}
