-- Each message that dbt has taken is published in the table of its event type or in rejected_messages, in the right one
-- and in no other; and those tables have no others.
{{ config(tags=['full_scan']) }}

with

published as (

    {%- for event, it in declared_events().items() %}
    select message_id, '{{ event }}' as event_type from {{ ref(it.model) }}
    union all
    {%- endfor %}
    select message_id, null as event_type from {{ ref('rejected_messages') }}

)

select
    count(*) filter (where taken.message_id is null) as not_taken,
    count(*) filter (where published.message_id is null) as not_published,
    count(*) filter (
        where taken.message_id is not null and published.message_id is not null
            and published.event_type is distinct from case when taken.is_accepted then taken.event_type end
    ) as in_the_wrong_place,
    count(*) - count(distinct coalesce(taken.message_id, published.message_id)) as more_than_once
from {{ ref('int_messages__masked') }} as taken
full join published on taken.message_id = published.message_id
having
    count(*) filter (
        where taken.message_id is null or published.message_id is null
            or published.event_type is distinct from case when taken.is_accepted then taken.event_type end
    ) > 0
    or count(*) <> count(distinct coalesce(taken.message_id, published.message_id))
