-- Each message that dbt has taken is in exactly one of user_logins and rejected_messages, and in the right one; and
-- neither has others.
{{ config(tags=['full_scan']) }}

with

outcomes as (

    select
        count(*) as taken,
        count(*) filter (
            where
                taken.is_accepted is distinct from (accepted.message_id is not null)
                or taken.is_accepted is not distinct from (rejected.message_id is not null)
        ) as without_one_outcome
    from {{ ref('int_messages__masked') }} as taken
    left join {{ ref('user_logins') }} as accepted on taken.message_id = accepted.message_id
    left join {{ ref('rejected_messages') }} as rejected on taken.message_id = rejected.message_id

),

accepted as (

    select count(*) as accepted from {{ ref('user_logins') }}

),

rejected as (

    select count(*) as rejected from {{ ref('rejected_messages') }}

)

select * from outcomes
cross join accepted
cross join rejected
where without_one_outcome > 0 or taken <> accepted + rejected
