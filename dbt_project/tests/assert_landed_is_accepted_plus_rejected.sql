-- Nothing is lost: what the ledger says has landed is accepted, rejected or erased, for all loads that dbt has taken.

with

taken as (

    select coalesce(max(load_id), 0) as load_id from {{ ref('int_messages__masked') }}

),

landed as (

    select coalesce(sum(loads.landed), 0) as landed
    from taken
    inner join {{ source('raw', 'loads') }} as loads on taken.load_id >= loads.load_id

),

accepted as (

    select count(*) as accepted from {{ ref('user_logins') }}

),

rejected as (

    select count(*) as rejected from {{ ref('rejected_messages') }}

),

erased as (

    select count(*) as erased
    from taken
    inner join {{ source('privacy', 'erased_messages') }} as erased_messages
        on taken.load_id >= erased_messages.load_id

)

select * from landed
cross join accepted
cross join rejected
cross join erased
where landed <> accepted + rejected + erased
